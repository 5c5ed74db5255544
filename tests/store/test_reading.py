"""Requests of an answer: one per chunk, all at once, for what its method reads; none for chunks that are near."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag.chunk_cache import ChunkCache, score_layers
from samkv_rag.exceptions import DamagedChunkError
from samkv_rag.prefill import PrefillMethod
from samkv_rag.prefill.passes.plan import make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader
from samkv_rag.store import open_store
from samkv_rag.store.base import read_bytes
from samkv_rag.store.codec import StoredChunk, open_chunk
from samkv_rag.store.disk import DiskStore, FileBlob
from samkv_rag.store.testing import data_of
from support import tiny
from support.engines import CHUNKS, PROMPT, MakeEngine, layout_of
from support.stores import Remote

# Far


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
@pytest.mark.parametrize(("storage", "share"), [("index", 1.0), ("full", 0.9)])
def test_an_answer_makes_one_request_per_chunk_all_at_once(
    make_engine: MakeEngine, storage: Any, kv_dtype: Any, share: float
) -> None:
    remote, long = Remote(), [tiny.text(seed, 300) for seed in range(4)]
    engine = make_engine(store=remote, storage=storage, kv_dtype=kv_dtype, chunks=long)
    sizes = {found.key: found.num_bytes for found in remote.keys()}
    remote.at_once = threading.Barrier(len(long))
    for _ in range(2):
        remote.requests.clear()
        result = engine.generate(tiny.rag_prompt(long), method=tiny.method(refresh_tokens=4), max_new_tokens=4)
        assert result.metrics.chunks_hit == len(long)
        assert {key for key, _ in remote.requests} == sizes.keys()
        assert len(remote.requests) == len(long)
        assert all(num_bytes <= share * sizes[key] for key, num_bytes in remote.requests)


@pytest.mark.parametrize(
    "method",
    [tiny.method("naive_reuse"), tiny.method(recompute=False)],
    ids=tiny.method_id,
)
def test_a_method_that_reads_all_layers_requests_the_whole_chunk_once(
    make_engine: MakeEngine, method: PrefillMethod
) -> None:
    remote = Remote()
    engine = make_engine(store=remote, chunks=CHUNKS)
    engine.generate(PROMPT, max_new_tokens=8, method=method)
    assert sorted(remote.requests) == sorted((found.key, found.num_bytes) for found in remote.keys())


def test_the_rest_of_a_chunk_comes_by_one_more_request(make_engine: MakeEngine) -> None:
    remote = Remote()
    make_engine(store=remote, chunks=CHUNKS[:1])
    ((key, size),) = ((found.key, found.num_bytes) for found in remote.keys())
    chunk, whole = open_chunk(remote, key, 20_000), open_chunk(remote.kept, key)
    assert chunk is not None
    assert whole is not None
    for layer in range(4):
        torch.testing.assert_close(chunk.layer(layer), whole.layer(layer), atol=0, rtol=0)
    assert remote.requests == [(key, 20_000), (key, size - 20_000)]


def _replace(remote: Remote, key: str) -> None:
    data = bytes(read_bytes(remote.kept.get(key)))  # type: ignore[arg-type]
    remote.put(key, data[:20_000] + bytes(len(data) - 20_000))


SPOILT: dict[str, Callable[[Remote, str], Any]] = {
    "deleted": lambda remote, key: remote.delete([key]),
    "replaced by other bytes": _replace,
    "replaced by fewer bytes": lambda remote, key: remote.put(key, data_of(1)),
    "away": lambda remote, key: setattr(remote, "away", True),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_two_requests_are_never_mixed(make_engine: MakeEngine, spoil: Callable[[Remote, str], Any]) -> None:
    remote = Remote()
    make_engine(store=remote, chunks=CHUNKS[:1])
    (key,) = (found.key for found in remote.keys())
    chunk = open_chunk(remote, key, 20_000)
    assert chunk is not None
    spoil(remote, key)
    with pytest.raises(DamagedChunkError):
        chunk.layer(3)


# Near


@pytest.mark.parametrize("storage", ["full", "index"])
def test_chunks_in_memory_need_no_disk(
    make_engine: MakeEngine, storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(store=tmp_path, storage=storage, chunks=CHUNKS)
    read: list[str] = []
    get, read_file = DiskStore.get, FileBlob.read
    monkeypatch.setattr(DiskStore, "get", lambda self, key: (read.append(key), get(self, key))[1])
    monkeypatch.setattr(FileBlob, "read", lambda self, parts: (read.append("bytes"), read_file(self, parts))[1])
    monkeypatch.setattr(DiskStore, "prefetch", lambda self, keys: read.extend(keys))
    engine = make_engine(store=open_store(tmp_path, memory_bytes=1 << 30), storage=storage)
    answers = []
    for _ in range(2):
        answers.append(engine.generate(PROMPT, max_new_tokens=4).token_ids)
        num_read, read[:] = len(read), []
    assert num_read == 0
    assert answers[0] == answers[1]


def test_a_file_is_read_from_the_disk_by_layers_and_nothing_twice(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [tiny.text(seed, 300) for seed in range(3)]
    engine = make_engine(store=tmp_path, chunks=long)
    places: list[tuple[int, int]] = []
    read = FileBlob.read

    def record(self: FileBlob, parts: Any) -> None:
        places.extend((start, start + memoryview(buffer).nbytes) for start, buffer in parts)
        read(self, parts)

    monkeypatch.setattr(FileBlob, "read", record)
    method: PrefillMethod = tiny.method(placement="prompt")  # ranking reads the values of a layer once more
    engine.generate(tiny.rag_prompt(long), max_new_tokens=1, method=method)
    blob = engine.store.get(next(engine.store.keys()).key)
    assert blob is not None
    spans, scored = StoredChunk(blob).tensors, score_layers(4)
    unread = spans[f"layer.{scored.stop:03}.keys"].start
    assert sum(stop - start for start, stop in places) < 1.05 * len(long) * unread
    assert not [start for start, _ in places if start >= unread and start > spans["layer.000.keys"].start + unread]


# Ahead


class Recorder:
    """A reader that records which layers were read."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.asked: list[int] = []
        self.was_asked = {layer: threading.Event() for layer in range(4)}
        self.raises: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        self.asked.append(layer)
        if layer == self.raises:
            raise DamagedChunkError("it is spoilt")
        self._reader.fill_layer(layer, keys, values)
        self.was_asked[layer].set()


@pytest.fixture
def recorded(make_engine: MakeEngine) -> tuple[Any, Any, Recorder]:
    """A decoder, a plan to read everything, and a recorder of the first chunk's reader."""
    engine = make_engine(chunks=CHUNKS)
    layout = layout_of(engine, PROMPT)
    plan = make_plan(layout, torch.ones_like(layout.is_text))
    source = next(source for source in plan.sources if not isinstance(source.reader, ChunkCache))
    recorder = Recorder(source.reader)
    object.__setattr__(source, "reader", recorder)
    return engine.decoder, plan, recorder


def test_the_next_layer_is_read_while_one_is_computed_with(recorded: tuple[Any, Any, Recorder]) -> None:
    decoder, plan, recorder = recorded
    expected = [[states.clone() for states in LayerReader(decoder, plan, [layer])(layer)] for layer in range(3)]
    recorder.asked.clear()
    for event in recorder.was_asked.values():
        event.clear()
    read = LayerReader(decoder, plan, range(3))
    for layer in range(3):
        states = read(layer)
        assert layer == 2 or recorder.was_asked[layer + 1].wait(10)
        for ours, theirs in zip(states, expected[layer], strict=True):
            assert torch.equal(ours, theirs)  # the next layer, read meanwhile, has its own buffer
    assert recorder.asked == [0, 1, 2]


def test_damage_found_ahead_is_raised_at_its_layer(recorded: tuple[Any, Any, Recorder]) -> None:
    decoder, plan, recorder = recorded
    recorder.raises = 1
    read = LayerReader(decoder, plan)
    read(0)
    with pytest.raises(DamagedChunkError, match="spoilt"):
        read(1)
    read(3)
    assert recorder.asked[:3] == [0, 1, 3]
