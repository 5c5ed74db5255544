"""Chunks brought nearer in the background: few at a time, and no longer than somebody waits for them."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
from test_store_tiered import SlowStore

import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import SamKVEngine
from samkv_rag.ingestion import hints
from samkv_rag.prompt import text_digest
from samkv_rag.store import MemoryStore, TieredStore
from samkv_rag.store.shared.background import BackgroundPool
from samkv_rag.store.tiers import prefetching
from samkv_rag.store.tiers.prefetching import Prefetcher

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(24)]
KEYS = [entry.key for entry in ENTRIES]
CHUNKS = [tiny.text(seed) for seed in range(12)]


def num_threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


# -- the pool --------------------------------------------------------------------------------------


def test_a_pool_runs_calls_in_order_on_few_threads() -> None:
    pool, seen = BackgroundPool(1, "test-order"), []
    for future in [pool.submit(seen.append, i) for i in range(50)]:
        future.result(20)
    assert seen == list(range(50))
    assert num_threads("test-order") == 1
    error = pool.submit(int, "x").exception(20)
    assert isinstance(error, ValueError)
    pool.close()


def test_a_pool_starts_no_more_threads_than_it_may() -> None:
    gate, pool = threading.Event(), BackgroundPool(3, "test-bound")
    futures = [pool.submit(gate.wait, 20) for _ in range(20)]
    assert num_threads("test-bound") == 3
    gate.set()
    assert all(future.result(20) for future in futures)
    pool.close()


def test_a_closed_or_forgotten_pool_leaves_no_thread() -> None:
    pools = [BackgroundPool(2, "test-end") for _ in range(2)]
    for pool in pools:
        pool.submit(int).result(20)
    pools[0].close()
    assert pools[0].submit(int).cancelled()
    del pool, pools
    gc.collect()
    deadline_s = time.monotonic() + 20
    while num_threads("test-end") and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert num_threads("test-end") == 0


# -- the prefetcher --------------------------------------------------------------------------------


@pytest.fixture
def far() -> SlowStore:
    far = SlowStore()
    for entry in ENTRIES:
        far.wrapped.put(entry, make_cache())
    return far


def test_chunks_are_near_before_they_are_asked_for(far: SlowStore) -> None:
    far.gate.set()
    tiers = TieredStore(MemoryStore(), far)
    tiers.prefetch([*KEYS, "0" * 64], FINGERPRINT).wait()  # type: ignore[attr-defined]
    assert sorted(far.fetched) == sorted([*KEYS, "0" * 64])
    far.fetched.clear()
    assert all(tiers.open(key, FINGERPRINT) is not None for key in KEYS)
    assert far.fetched == []


def test_few_are_under_way_at_once_and_after_cancelling_none_is_started(far: SlowStore) -> None:
    tiers = TieredStore(MemoryStore(), far)
    prefetch = tiers.prefetch(KEYS, FINGERPRINT)
    assert far.asked.wait(20)
    prefetch.cancel()
    far.gate.set()
    prefetch.wait()  # type: ignore[attr-defined]
    assert 1 <= len(far.fetched) <= prefetching.NUM_THREADS < len(KEYS)
    assert tiers._prefetcher.num_waiting == 0


def test_a_chunk_wanted_now_does_not_wait_for_its_turn(far: SlowStore) -> None:
    tiers = TieredStore(MemoryStore(), far)
    tiers._prefetcher = Prefetcher(tiers._bring, num_threads=1)
    tiers.prefetch(KEYS, FINGERPRINT)
    assert far.asked.wait(20)
    found: list[object] = []
    reading = threading.Thread(target=lambda: found.append(tiers.open(KEYS[-1], FINGERPRINT)))
    reading.start()
    deadline_s = time.monotonic() + 20
    while KEYS[-1] not in far.fetched and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert far.fetched == [KEYS[0], KEYS[-1]]
    far.gate.set()
    reading.join(20)
    assert found and found[0] is not None
    tiers.close()


def test_what_waited_too_long_is_not_read_any_more() -> None:
    fetched: list[str] = []
    prefetcher = Prefetcher(lambda key, fingerprint: fetched.append(key), max_age_s=-1)
    prefetcher.start(KEYS, FINGERPRINT).wait()
    assert fetched == [] and prefetcher.num_waiting == 0


def test_no_more_wait_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetching, "MAX_WAITING", 5)
    gate = threading.Event()
    prefetcher = Prefetcher(lambda key, fingerprint: gate.wait(20), num_threads=1)
    prefetches = [prefetcher.start(KEYS, FINGERPRINT) for _ in range(3)]
    assert prefetcher.num_waiting == 5
    gate.set()
    for prefetch in prefetches:
        prefetch.wait()
    assert prefetcher.num_waiting == 0


def test_a_failed_prefetch_is_left_to_the_reader(far: SlowStore) -> None:
    def fail(key: str, fingerprint: str) -> None:
        raise OSError("lost")

    prefetcher = Prefetcher(fail)
    prefetcher.start(KEYS, FINGERPRINT).wait()
    assert prefetcher.num_waiting == 0


# -- through the engine ----------------------------------------------------------------------------


@pytest.fixture
def tiered(make_engine: Callable[..., SamKVEngine]) -> tuple[SamKVEngine, SlowStore]:
    """An engine whose chunks are all far, behind a closed gate, and one thread that prefetches."""
    far = SlowStore()
    make_engine(store=far.wrapped).add_chunks(CHUNKS)
    tiers = TieredStore(MemoryStore(), far)
    tiers._prefetcher = Prefetcher(tiers._bring, num_threads=1)
    return make_engine(store=tiers), far


def waiting(engine: SamKVEngine) -> int:
    assert isinstance(engine.store, TieredStore)
    return engine.store._prefetcher.num_waiting


def test_hinted_chunks_are_near_before_the_prompt_comes(tiered: tuple[SamKVEngine, SlowStore]) -> None:
    engine, far = tiered
    far.gate.set()
    engine.hint(CHUNKS[:3])
    deadline_s = time.monotonic() + 20
    while waiting(engine) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert len(far.fetched) == 3
    result = engine.generate(tiny.rag_prompt(CHUNKS[:3]), max_new_tokens=2)
    assert result.metrics.chunks_hit == 3
    assert len(far.fetched) == 3, "the prompt found them near"


def test_when_a_request_has_been_read_nothing_of_its_hint_is_left(tiered: tuple[SamKVEngine, SlowStore]) -> None:
    engine, far = tiered
    far.free = {engine._library._key(text_digest(chunk)) for chunk in CHUNKS[:2]}
    engine.hint(CHUNKS[::-1])
    assert far.asked.wait(20)
    assert waiting(engine) == len(CHUNKS)
    engine.hint([tiny.text(99)])  # another request's: it stays
    result = engine.generate(tiny.rag_prompt(CHUNKS[:2]), max_new_tokens=2)
    assert result.metrics.chunks_hit == 2
    assert waiting(engine) == 2, "what was under way, and the other request's"
    assert far.fetched == [engine._library._key(text_digest(CHUNKS[i])) for i in (11, 0, 1)]
    far.gate.set()


@pytest.mark.parametrize("policy", [{"method": "full_prefill"}, {"min_chunk_tokens": 10_000}])
def test_a_request_that_reads_no_cache_ends_its_hint_too(
    tiered: tuple[SamKVEngine, SlowStore], policy: dict[str, object]
) -> None:
    engine, far = tiered
    engine.hint(CHUNKS)
    assert far.asked.wait(20)
    engine.generate(tiny.rag_prompt(CHUNKS[:2]), max_new_tokens=2, **policy)
    assert waiting(engine) == 1, "what is under way is finished"
    far.gate.set()


def test_a_cancelled_hint_starts_nothing_more(tiered: tuple[SamKVEngine, SlowStore]) -> None:
    engine, far = tiered
    hint = engine.hint(CHUNKS)
    assert far.asked.wait(20)
    hint.cancel()
    assert waiting(engine) == 1
    far.gate.set()


def test_hints_whose_prompts_never_come_are_bounded(
    tiered: tuple[SamKVEngine, SlowStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, far = tiered
    monkeypatch.setattr(hints, "_MAX_HINTS", 4)
    for chunk in CHUNKS:
        engine.hint([chunk])
    assert far.asked.wait(20)
    assert len(engine._library._hints) == 4
    assert waiting(engine) <= 5, "four, and the one that is under way"
    far.gate.set()
