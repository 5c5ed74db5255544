"""The memory store's budget."""

from __future__ import annotations

import threading

import pytest
import torch

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag.exceptions import StoreFullError
from samkv_rag.store import MemoryStore
from samkv_rag.store.base import EncodedChunk

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(40)]
CHUNK_BYTES = len(EncodedChunk.of(ENTRIES[0], make_cache()).data)


def stored(store: MemoryStore) -> list[int]:
    return [i for i, entry in enumerate(ENTRIES) if entry.key in store._chunks]


def test_the_least_recently_read_goes_first() -> None:
    store = MemoryStore(4 * CHUNK_BYTES)
    for entry in ENTRIES[:3]:
        store.put(entry, make_cache())
    assert store.open(ENTRIES[0].key, FINGERPRINT) is not None
    store.put(ENTRIES[3], make_cache())
    store.put(ENTRIES[4], make_cache())
    assert {0, 4} <= set(stored(store)) and 1 not in stored(store)
    assert store.open(ENTRIES[1].key, FINGERPRINT) is None
    assert store.fetch(ENTRIES[1].key, FINGERPRINT) is None


def test_the_budget_holds_and_is_used() -> None:
    store = MemoryStore(10 * CHUNK_BYTES)
    for entry in ENTRIES:
        store.put(entry, make_cache())
        assert store.nbytes() <= 10 * CHUNK_BYTES
    assert store.nbytes() == sum(len(chunk.data) for chunk, _ in store._chunks.values()) >= 8 * CHUNK_BYTES


def test_an_evicted_chunk_is_listed_no_more_and_its_sources_stay() -> None:
    store = MemoryStore(3 * CHUNK_BYTES)
    store.put(ENTRIES[0], make_cache())
    store.refer(FINGERPRINT, {"a": ENTRIES[0].key})
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    for entry in ENTRIES[1:5]:
        store.put(entry, make_cache())
    assert store.changes(FINGERPRINT, mark) is None
    listed = [entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]]
    assert listed == [ENTRIES[i].key for i in stored(store)]
    assert store.references(FINGERPRINT) == {"a": ENTRIES[0].key}


def test_a_chunk_past_the_budget_is_refused_and_evicts_nothing() -> None:
    store = MemoryStore(3 * CHUNK_BYTES)
    store.put(ENTRIES[0], make_cache())
    with pytest.raises(StoreFullError, match="does not fit the memory budget"):
        store.put(ENTRIES[1], make_cache(num_tokens=500))
    assert stored(store) == [0]


def test_a_reader_outlives_its_chunk() -> None:
    store = MemoryStore(2 * CHUNK_BYTES)
    store.put(ENTRIES[0], make_cache(seed=1))
    reader = store.open(ENTRIES[0].key, FINGERPRINT)
    assert reader is not None
    for entry in ENTRIES[1:5]:
        store.put(entry, make_cache(seed=2))
    assert 0 not in stored(store)
    assert torch.equal(reader.layer(0)[0], make_cache(seed=1).keys[0])


def test_layers_are_the_readers_own() -> None:
    store = MemoryStore()
    store.put(ENTRIES[0], make_cache())
    reader = store.open(ENTRIES[0].key, FINGERPRINT)
    assert reader is not None
    reader.layer(0)[0].zero_()
    assert torch.equal(reader.layer(0)[0], make_cache().keys[0])


def test_the_budget_holds_under_threads() -> None:
    store = MemoryStore(6 * CHUNK_BYTES)
    largest: list[int] = []

    def work(start: int) -> None:
        for i in range(80):
            entry = ENTRIES[(start + i) % len(ENTRIES)]
            if store.open(entry.key, FINGERPRINT) is None:
                store.put(entry, make_cache())
            if i % 9 == 0:
                store.remove([entry.key])
            largest.append(store.nbytes())

    threads = [threading.Thread(target=work, args=(7 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(largest) == 8 * 80
    assert max(largest) <= 6 * CHUNK_BYTES
    assert store.nbytes() == sum(len(chunk.data) for chunk, _ in store._chunks.values())
