"""One contract, run on every store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stores
import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import DamagedChunkWarning, SamKVEngine
from samkv_rag.chunk_cache import Means
from samkv_rag.exceptions import StoreError, StoreFullError
from samkv_rag.store import Entry, KVStore, MemoryStore
from samkv_rag.store.disk import chunk_folder


@pytest.fixture(params=list(stores.KINDS))
def store(request: pytest.FixtureRequest, make_store: Callable[[str], KVStore]) -> KVStore:
    return make_store(request.param)


def test_what_is_put_is_read_back_bit_by_bit(store: KVStore) -> None:
    entry, cache = make_entry("a text of some length"), make_cache()
    store.put(entry, cache)
    reader = store.open(entry.key, FINGERPRINT)
    assert reader is not None
    assert reader.layout == cache.layout
    assert torch.equal(reader.token_ids, cache.token_ids)
    for layer in range(3):
        for found, expected in zip(reader.layer(layer), cache.layer(layer), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    for name in Means.__annotations__:
        assert torch.equal(getattr(reader.means(), name), getattr(cache.summary, name))
    assert cache.hidden is not None
    assert torch.equal(reader.resume_hidden(), cache.hidden)


def test_absent_and_foreign_chunks_are_misses(store: KVStore) -> None:
    entry = make_entry("a text of some length")
    assert store.open(entry.key, FINGERPRINT) is None
    store.put(make_entry("a text of another model", "b" * 64), make_cache(fingerprint="b" * 64))
    assert store.changes(FINGERPRINT, 0) == ([], store.changes("b" * 64, 0)[1])  # type: ignore[index]


def test_changes_name_what_was_added_since(store: KVStore) -> None:
    first, second = make_entry("the first of two texts"), make_entry("the second of two texts")
    assert store.changes(FINGERPRINT, 0) == ([], 0)
    store.put(first, make_cache())
    entries, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    assert entries == [first]
    store.put(second, make_cache())
    entries, newer = store.changes(FINGERPRINT, mark) or ([], 0)
    assert entries == [second]
    assert store.changes(FINGERPRINT, newer) == ([], newer)


def test_a_removal_makes_readers_start_over(store: KVStore) -> None:
    first, second = make_entry("the first of two texts"), make_entry("the second of two texts")
    store.put(first, make_cache())
    store.put(second, make_cache())
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    assert store.remove([first.key, first.key, "absent"]) == 1
    assert store.changes(FINGERPRINT, mark) is None
    assert (store.changes(FINGERPRINT, 0) or ([], 0))[0] == [second]
    assert store.open(first.key, FINGERPRINT) is None
    assert store.remove([first.key]) == 0


def test_put_replaces(store: KVStore) -> None:
    entry = make_entry("a text of some length")
    store.put(entry, make_cache(seed=1))
    store.flush()
    size = store.nbytes()
    store.put(entry, make_cache(seed=2))
    store.flush()
    reader = store.open(entry.key, FINGERPRINT)
    assert reader is not None
    assert torch.equal(reader.layer(0)[0], make_cache(seed=2).keys[0])
    assert store.nbytes() == size > 0
    assert [e.key for e in (store.changes(FINGERPRINT, 0) or ([], 0))[0]] == [entry.key]


def test_what_is_fetched_can_be_put_into_another_store(store: KVStore) -> None:
    entry, cache = make_entry("a text of some length"), make_cache()
    assert store.fetch(entry.key, FINGERPRINT) is None
    store.put(entry, cache)
    fetched = store.fetch(entry.key, FINGERPRINT)
    assert fetched is not None
    assert (fetched.entry, fetched.fingerprint) == (entry, FINGERPRINT)
    other = MemoryStore()
    other.put_encoded(fetched)
    reader = other.open(entry.key, FINGERPRINT)
    assert reader is not None
    assert torch.equal(reader.layer(2)[1], cache.values[2])


def test_prefetch_takes_any_key(store: KVStore) -> None:
    entry = make_entry("a text of some length")
    store.put(entry, make_cache())
    prefetch = store.prefetch([entry.key, "0" * 64], FINGERPRINT)
    assert store.open(entry.key, FINGERPRINT) is not None
    prefetch.cancel()
    prefetch.cancel()
    assert store.open(entry.key, FINGERPRINT) is not None


def test_threads_put_and_read_at_once(store: KVStore) -> None:
    entries = [make_entry(f"text number {i} of the store") for i in range(24)]
    errors: list[BaseException] = []

    def work(part: list[Entry]) -> None:
        try:
            for entry in part:
                store.put(entry, make_cache())
                assert store.open(entry.key, FINGERPRINT) is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(entries[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len((store.changes(FINGERPRINT, 0) or ([], 0))[0]) == 24


# -- through the engine --------------------------------------------------------------------------


def test_a_damaged_chunk_is_computed_again_and_the_answer_is_the_same(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(3)]
    first = make_engine(store=tmp_path)
    first.add_chunks(chunks)
    expected = first.generate(tiny.rag_prompt(chunks), max_new_tokens=8)
    path = next(tmp_path.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    second = make_engine(store=tmp_path)
    with pytest.warns(DamagedChunkWarning, match=path.name):
        found = second.generate(tiny.rag_prompt(chunks), max_new_tokens=8)
    assert found.token_ids == expected.token_ids
    assert (found.metrics.chunks_hit, found.metrics.chunks_missed) == (2, 1)
    assert second.generate(tiny.rag_prompt(chunks), max_new_tokens=8).metrics.chunks_hit == 3


def test_a_store_of_another_model_is_a_miss_and_loses_nothing(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(3)]
    llama, qwen = make_engine("llama", store=tmp_path), make_engine("qwen2", store=tmp_path)
    llama.add_chunks(chunks)
    result = qwen.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
    assert result.metrics.chunks_total == 0
    assert qwen.add_chunks(chunks).num_added == 3
    assert llama.add_chunks(chunks).num_reused == 3


def test_a_full_disk_stops_ingestion_with_its_reason_and_queries_go_on(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(store=tmp_path)
    chunks = [tiny.text(seed) for seed in range(3)]
    engine.add_chunks(chunks[:1])

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunk_folder, "_write_all", full)
    with pytest.raises(StoreFullError, match="Stored chunks are intact"):
        engine.add_chunks(chunks)
    engine.hint(chunks)
    with pytest.warns(UserWarning, match="is full"):
        result = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
    assert (result.metrics.chunks_hit, result.metrics.chunks_missed) == (1, 2)


def test_changed_summaries_are_computed_again_only_where_they_are_read(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(2)]
    make_engine(store=tmp_path, block_tokens=8).add_chunks(chunks)
    assert make_engine(store=tmp_path, block_tokens=16).add_chunks(chunks).num_reused == 2
    assert make_engine(store=tmp_path, block_tokens=16, method="samkv").add_chunks(chunks).num_added == 2
    assert make_engine(store=tmp_path, block_tokens=16, resume_layer=2).add_chunks(chunks).num_added == 2


def test_entries_compare_by_value() -> None:
    entry = make_entry("a text of some length")
    assert entry == make_entry("a text of some length") != replace(entry, num_tokens=8)


@pytest.mark.parametrize("kind", [kind for kind in stores.KINDS if not kind.startswith(("memory", "redis"))])
def test_a_closed_store_says_that_it_is(make_store: Callable[[str], KVStore], kind: str) -> None:
    store = make_store(kind)
    store.close()
    with pytest.raises(StoreError, match="is closed; open it again"):
        store.put(make_entry("a text of some length"), make_cache())
    store.close()
