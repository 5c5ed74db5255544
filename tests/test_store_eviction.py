"""A disk store's byte budget: what goes, what stays, and how last uses are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, StoreFullError
from samkv_rag.store import DiskStore, Entry
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.disk import recency as recency_module
from samkv_rag.store.management.archive import export_chunks, import_chunks
from samkv_rag.store.management.inventory import list_chunks
from samkv_rag.store.management.pruning import PruneRule, SourceRule, prune

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(6)]
CHUNK_BYTES = len(EncodedChunk.of(ENTRIES[0], make_cache()).data)


def open_at(store: DiskStore, monkeypatch: pytest.MonkeyPatch, entry: Entry, now_s: float) -> None:
    monkeypatch.setattr(recency_module.time, "time", lambda: now_s)
    assert store.open(entry.key, FINGERPRINT) is not None
    monkeypatch.undo()


def stored(store: DiskStore) -> list[Entry]:
    """Entries, each of which can be read."""
    found = (store.changes(FINGERPRINT, 0) or ([], 0))[0]
    assert all(store.files.path(entry.key).exists() for entry in found)
    assert sum(1 for _ in store.files.files()) == len(found)
    return found


def test_the_least_recently_used_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path, budget_bytes=3 * CHUNK_BYTES)
    for entry in ENTRIES[:3]:
        store.put(entry, make_cache())
    open_at(store, monkeypatch, ENTRIES[0], time.time() + 100)
    open_at(store, monkeypatch, ENTRIES[2], time.time() + 50)
    store.put(ENTRIES[3], make_cache())
    assert {e.key for e in stored(store)} == {ENTRIES[i].key for i in (0, 2, 3)}
    assert store.nbytes() == 3 * CHUNK_BYTES


def test_of_two_equally_idle_the_one_cheaper_to_compute_again_goes(tmp_path: Path) -> None:
    """Both take the same bytes; one says that it has many times the tokens."""
    dear = make_entry("a text that took long to compute")
    dear = Entry(**{**vars(dear), "num_tokens": 7000})
    cheap = ENTRIES[0]
    store = DiskStore(tmp_path, budget_bytes=3 * CHUNK_BYTES)
    store.put(dear, make_cache())
    store.put(cheap, make_cache())
    store.put(ENTRIES[1], make_cache())
    assert {dear.key, ENTRIES[1].key} <= {e.key for e in stored(store)}


def test_the_budget_holds_while_threads_and_stores_put_at_once(tmp_path: Path) -> None:
    stores = [DiskStore(tmp_path, budget_bytes=4 * CHUNK_BYTES) for _ in range(2)]

    def put(number: int) -> None:
        for i in range(8):
            stores[number % 2].put(make_entry(f"text {i} of thread {number}, long enough"), make_cache())

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored(stores[0])) == 4
    assert stores[1].nbytes() == 4 * CHUNK_BYTES


def test_putting_a_chunk_again_evicts_nothing(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, budget_bytes=2 * CHUNK_BYTES)
    for entry in (*ENTRIES[:2], ENTRIES[0], ENTRIES[1]):
        store.put(entry, make_cache())
    assert len(stored(store)) == 2


def test_a_store_over_its_new_budget_shrinks_with_the_next_chunk(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as unbounded:
        for entry in ENTRIES[:5]:
            unbounded.put(entry, make_cache())
    store = DiskStore(tmp_path, budget_bytes=2 * CHUNK_BYTES)
    store.put(ENTRIES[5], make_cache())
    assert len(stored(store)) == 2


def test_a_chunk_larger_than_the_budget_is_refused_and_nothing_goes(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, budget_bytes=CHUNK_BYTES)
    store.put(ENTRIES[0], make_cache())
    with pytest.raises(StoreFullError, match="raise the budget"):
        store.put(ENTRIES[1], make_cache(num_tokens=70))
    assert [e.key for e in stored(store)] == [ENTRIES[0].key]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "10GB", True])
def test_a_budget_that_is_none_is_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="number of bytes"):
        DiskStore(tmp_path, budget_bytes=wrong)  # type: ignore[arg-type]


def test_an_evicted_chunk_keeps_its_references(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, budget_bytes=CHUNK_BYTES)
    store.put(ENTRIES[0], make_cache())
    store.refer(FINGERPRINT, {"one": ENTRIES[0].key})
    store.put(ENTRIES[1], make_cache())
    assert store.references(FINGERPRINT) == {"one": ENTRIES[0].key}
    assert store.release(FINGERPRINT, ["one"]) == 0


def test_a_reader_keeps_what_it_opened_before_the_eviction(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, budget_bytes=CHUNK_BYTES)
    store.put(ENTRIES[0], make_cache(seed=1))
    reader = store.open(ENTRIES[0].key, FINGERPRINT)
    store.put(ENTRIES[1], make_cache(seed=2))
    assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    assert reader is not None and (reader.layer(2)[0] == make_cache(seed=1).keys[2]).all()


# -- last uses -----------------------------------------------------------------------------------------


def last_use_s(store: DiskStore, entry: Entry) -> float:
    return next(chunk.last_use_s for chunk in list_chunks(store) if chunk.entry.key == entry.key)


def test_reading_writes_nothing_until_the_store_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = DiskStore(tmp_path), DiskStore(tmp_path)
    store.put(ENTRIES[0], make_cache())
    later = time.time() + 1000
    open_at(store, monkeypatch, ENTRIES[0], later)
    assert last_use_s(other, ENTRIES[0]) < later
    store.close()
    assert last_use_s(other, ENTRIES[0]) == later


def test_uses_are_written_now_and_then_by_a_thread_of_their_own() -> None:
    written = threading.Event()
    recency = recency_module.Recency(written.set, every_s=0.01)
    recency.note("a key")
    assert written.wait(timeout=10)
    assert list(recency.take()) == ["a key"]
    assert recency.take() == {}
    recency.close()


def test_uses_that_could_not_be_written_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path)
    store.put(ENTRIES[0], make_cache())
    later = time.time() + 1000
    open_at(store, monkeypatch, ENTRIES[0], later)

    def full(*arguments: object) -> None:
        raise StoreFullError("no room")

    monkeypatch.setattr(store.index, "write", full)
    store.flush_uses()
    monkeypatch.undo()
    store.flush_uses()
    assert last_use_s(store, ENTRIES[0]) == later


def test_an_engine_answers_the_same_within_any_budget(make_engine: Callable[..., SamKVEngine], tmp_path: Path) -> None:
    chunks = [tiny.text(seed) for seed in range(4)]
    free = make_engine()
    free.add_chunks(chunks)
    expected = free.generate(tiny.rag_prompt(chunks), max_new_tokens=6).token_ids
    with DiskStore(tmp_path / "free") as measured:
        make_engine(store=measured).add_chunks(chunks)
        budget = measured.nbytes() // 2
    tight = make_engine(store=DiskStore(tmp_path / "tight", budget_bytes=budget))
    tight.add_chunks(chunks)
    for _ in range(2):
        result = tight.generate(tiny.rag_prompt(chunks), max_new_tokens=6)
        assert result.token_ids == expected
        assert tight.store.nbytes() <= budget


def test_a_chunk_replaced_by_a_larger_one_keeps_within_the_budget(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, budget_bytes=3 * CHUNK_BYTES)
    for entry in ENTRIES[:3]:
        store.put(entry, make_cache())
    store.put(ENTRIES[0], make_cache(num_tokens=9))
    assert {e.key for e in stored(store)} == {ENTRIES[0].key, ENTRIES[2].key}
    assert store.nbytes() <= 3 * CHUNK_BYTES


def test_a_copy_made_of_a_store_is_no_use_of_its_chunks(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store") as store:
        store.put(ENTRIES[0], make_cache())
        before = list_chunks(store)
        export_chunks(store, tmp_path / "copy.tar")
        import_chunks(store, tmp_path / "copy.tar")
        assert list_chunks(store) == before


def test_a_chunk_that_is_referred_to_while_it_is_pruned_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ENTRIES[0].key
    store, other = DiskStore(tmp_path), DiskStore(tmp_path)
    store.put(ENTRIES[0], make_cache())
    store.refer(FINGERPRINT, {"old": key})
    release = store.release

    def release_late(fingerprint: str, sources: set[str]) -> int:
        other.refer(FINGERPRINT, {"new": key})
        return release(fingerprint, sources)

    monkeypatch.setattr(store, "release", release_late)
    prune(store, PruneRule(sources=SourceRule("", frozenset())))
    assert store.references(FINGERPRINT) == {"new": key}
    assert store.open(key, FINGERPRINT) is not None
