"""The folder of a disk store: whole files, budgets, and files of others."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import torch

from samkv_rag import open_store
from samkv_rag.exceptions import ConfigurationError, StoreError, StoreFormatError, StoreFullError
from samkv_rag.ingestion.recognition import text_digest
from samkv_rag.store.base import read_bytes
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.testing import data_of, key_of
from support import tiny
from support.engines import CHUNKS, PROMPT, MakeEngine


def used(store: DiskStore, number: int, seconds_ago: float) -> None:
    path = store._path(key_of(number))
    os.utime(path, (time.time() - seconds_ago, path.stat().st_mtime))


def test_the_least_recently_used_chunks_are_evicted(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", budget_bytes=10_000)
    for number in range(9):
        store.put(key_of(number), data_of(number))
        used(store, number, seconds_ago=100 - number)
    assert store.get(key_of(0)) is not None  # used now
    store.put(key_of(20), data_of(20, num_bytes=2_500))
    assert store.contains(map(key_of, range(9))) == {key_of(n) for n in (0, 3, 4, 5, 6, 7, 8)}
    assert store.num_evicted == 2
    assert sum(found.num_bytes for found in store.keys()) <= 10_000


def test_a_clock_ahead_does_not_keep_a_chunk_for_ever(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", budget_bytes=3_000)
    store.put(key_of(0), data_of(0))
    used(store, 0, seconds_ago=-10 * 365 * 86_400)
    for number in range(1, 7):
        store.put(key_of(number), data_of(number))
        time.sleep(0.01)
        assert store.get(key_of(number)) is not None  # used after the first was counted
    assert store.contains([key_of(0)]) == set()


def test_several_writers_stay_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samkv_rag.store.disk._RECOUNT_AFTER_S", 0.0)
    stores = [DiskStore(tmp_path / "kv", budget_bytes=10_000) for _ in range(2)]
    for number in range(20):
        stores[number % 2].put(key_of(number), data_of(number))
        assert sum(found.num_bytes for found in stores[0].keys()) <= 10_000


def test_more_than_the_budget_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv", budget_bytes=2_000)
    store.put(key_of(1), data_of(1))
    with pytest.raises(StoreFullError, match=r"a chunk takes 2,001 bytes, the budget of .* is 2,000; raise"):
        store.put(key_of(2), data_of(2, num_bytes=2_001))
    assert store.contains([key_of(1)])


def test_a_full_disk_raises_and_loses_nothing(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(store=tmp_path / "kv")
    engine.add_chunks(CHUNKS[:2], sources=["a", "b"])
    real = os.replace

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreFullError, match=r"no space left for .*stored chunks are intact"):
        engine.add_chunks(CHUNKS[2:], sources=["c", "d"])
    engine.announce(CHUNKS)
    with pytest.warns(UserWarning, match="no space left"):
        assert engine.generate(PROMPT, max_new_tokens=1).metrics.chunks_hit == 2
    monkeypatch.setattr(os, "replace", real)
    assert sorted(engine.sources()) == ["a", "b"]
    assert engine.add_chunks(CHUNKS, sources=["a", "b", "c", "d"]).num_added in (0, 2)
    assert not list((tmp_path / "kv").rglob(".writing-*"))


def test_leftovers_of_killed_writers_are_removed_after_a_day(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv")
    store.put(key_of(1), data_of(1))
    folder = store._path(key_of(1)).parent
    for name, age_s in ((".writing-old", 90_000), (".writing-new", 10)):
        (folder / name).write_bytes(b"half of a chunk")
        os.utime(folder / name, (time.time() - age_s,) * 2)
    assert store.remove_leftovers() == 1
    assert [path.name for path in folder.glob(".writing-*")] == [".writing-new"]
    assert [found.key for found in store.keys()] == [key_of(1)]


def test_files_of_other_names_are_not_chunks(make_engine: MakeEngine, tmp_path: Path) -> None:
    make_engine(store=tmp_path / "kv", chunks=CHUNKS).close()
    chunk = next((tmp_path / "kv" / "chunks").rglob("*.safetensors"))
    chunk.with_name(f"{chunk.stem} (copy).safetensors").write_bytes(chunk.read_bytes())
    for file in (tmp_path / "kv").glob("catalog.sqlite*"):
        file.unlink()
    again = make_engine(store=tmp_path / "kv")
    assert again.generate(PROMPT, max_new_tokens=1).metrics.chunks_hit == len(CHUNKS)
    assert len(list(again.store.keys())) == len(CHUNKS)


@pytest.mark.parametrize("place", ["fifo", "folder", "link", "loop"])
def test_a_path_that_is_not_a_file_is_a_miss(make_engine: MakeEngine, tmp_path: Path, place: str) -> None:
    engine = make_engine(store=tmp_path / "kv", chunks=CHUNKS)
    expected = engine.generate(PROMPT, max_new_tokens=4).token_ids
    path = next((tmp_path / "kv" / "chunks").rglob("*.safetensors"))
    path.unlink()
    if place == "fifo":
        os.mkfifo(path)  # opening it to read could block for ever
    elif place == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if place == "link" else path)
    fresh = make_engine(store=tmp_path / "kv")
    with pytest.warns(UserWarning, match="computed again|cannot be"):
        result = fresh.generate(PROMPT, max_new_tokens=4)
    assert (result.token_ids, result.metrics.chunks_missed) == (expected, 1)


@pytest.mark.parametrize(
    "location", ["", "  ", Path(""), "local://", "file://", "file:///tmp/x", "\0", ":memory:x://", 3, None]
)
def test_a_wrong_location_is_refused(location: object) -> None:
    with pytest.raises(ConfigurationError):
        open_store(location)  # type: ignore[arg-type]
    assert os.listdir() == []


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    open_store("~/kv").close()
    assert os.listdir(tmp_path) == ["kv"]


@pytest.mark.parametrize("there", ["notes.txt", "index.sqlite", "model.safetensors"])
def test_a_folder_with_other_files_is_refused_and_not_changed(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("something else")
    with pytest.raises(StoreFormatError, match=f"holds other things \\({there}\\); a store needs a folder of its own"):
        DiskStore(tmp_path)
    assert os.listdir(tmp_path) == [there]


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    DiskStore(tmp_path / "kv")
    marker = tmp_path / "kv" / "samkv-store.json"
    for content, message in (
        ('{"samkv_store": 99}', "is a store of format 99, this release has 5"),
        ("", "is damaged"),
    ):
        marker.write_text(content)
        with pytest.raises(StoreFormatError, match=message):
            DiskStore(tmp_path / "kv")


def test_a_folder_that_others_can_write_to_warns_and_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir(mode=0o700)
    (tmp_path / "kv").chmod(0o777)
    with pytest.warns(UserWarning, match="can be written by other users, .*; chmod go-w it"):
        DiskStore(tmp_path / "kv")
    (tmp_path / "file").write_text("a file")
    with pytest.raises(StoreError, match="cannot be used"):
        DiskStore(tmp_path / "file")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_open_streams_hold_no_files(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(store=tmp_path / "kv", chunks=CHUNKS)
    engine.generate(PROMPT, max_new_tokens=1)
    before = descriptors()
    streams = [engine.stream(PROMPT, max_new_tokens=2) for _ in range(100)]
    for stream in streams:
        next(stream)
    assert descriptors() <= before + 2
    layouts = [stream._sequence.read.layout for stream in streams if stream._sequence and stream._sequence.read]
    assert all(segment.reader is None for layout in layouts for segment in layout.segments)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_a_prompt_of_many_chunks_opens_few_files(make_engine: MakeEngine, tmp_path: Path) -> None:
    import resource

    many = [f"Note {number:04}: {tiny.text(number, 4)}" for number in range(150)]
    engine = make_engine(store=tmp_path / "kv", chunks=many)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors() + 30, hard))
    try:
        metrics = engine.generate(tiny.rag_prompt(many), max_new_tokens=1).metrics
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert metrics.chunks_hit == 150


def test_a_tensor_of_no_bytes_is_read(tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    store.put("0" * 64, b"abcdef")
    blob = store.get("0" * 64)
    assert blob is not None
    tensors = [torch.zeros(rows, 2, dtype=torch.uint8) for rows in (1, 0, 2)]
    blob.read([(start, tensor.numpy().data) for start, tensor in zip((0, 2, 2), tensors, strict=True)])
    assert [bytes(tensor.flatten().tolist()) for tensor in tensors] == [b"ab", b"", b"cdef"]


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_of_more_chunks_than_the_budget_holds_is_answered(make_engine: MakeEngine, tmp_path: Path) -> None:
    chunks = [tiny.text(seed, num_words=60) for seed in range(6)]
    engine = make_engine(store=tmp_path / "whole", chunks=chunks)
    expected = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
    num_bytes = sum(found.num_bytes for found in engine.store.keys())
    engine = make_engine(store=DiskStore(tmp_path / "small", budget_bytes=num_bytes // 2))
    engine.announce(chunks)
    for _ in range(3):
        result = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
        assert result.token_ids == expected.token_ids
        assert result.metrics.method == "scout"


@pytest.mark.filterwarnings("ignore")
def test_evicted_chunks_are_forgotten_in_the_end_unless_they_have_a_source(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samkv_rag.ingestion.library._MAX_KNOWN", 4)
    monkeypatch.setattr("samkv_rag.ingestion.library._FORGET_AFTER", 1)
    engine = make_engine(store=DiskStore(tmp_path, budget_bytes=200_000))
    texts = [tiny.text(seed, num_words=60) for seed in range(12)]
    engine.add_chunks(texts[:1], sources=["the first"])
    for text in texts[1:]:
        engine.add_chunks([text])
    known = {chunk.digest for chunk in engine._library._catalog.chunks()}
    assert text_digest(texts[0]) in known and text_digest(texts[-1]) in known
    assert len(known) <= 1 + 4 + 2
    found = [[chunk.text_digest for chunk in engine._library.find(text)] for text in texts]
    assert [bool(digests) for digests in found] == [text_digest(text) in known for text in texts]


def test_a_peek_is_not_a_use(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv")
    store.put(key_of(1), data_of(1))
    used(store, 1, seconds_ago=1000)
    before = next(store.keys()).last_use_s
    peeked = store.peek(key_of(1))
    assert peeked is not None
    assert bytes(read_bytes(peeked)) == data_of(1)
    assert next(store.keys()).last_use_s == before
    assert store.get(key_of(1)) is not None
    assert next(store.keys()).last_use_s > before + 900
