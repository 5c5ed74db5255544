"""Tiers: what is promoted, what is on its way back, what a far store does wrong."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import DamagedChunkWarning
from samkv_rag.exceptions import StoreError, StoreFullError, StoreUnreachableError
from samkv_rag.store import DiskStore, KVStore, MemoryStore, RemoteStore, TieredStore
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.tiers.write_back import WriteBack
from stores import WrappedStore

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(24)]
CHUNK_BYTES = len(EncodedChunk.of(ENTRIES[0], make_cache()).data)


class SlowStore(WrappedStore):
    """Lets nothing through until told to, and counts what was asked of it."""

    def __init__(self, wrapped: KVStore | None = None) -> None:
        super().__init__(wrapped or MemoryStore())
        self.fetched: list[str] = []
        self.gate = threading.Event()
        self.asked = threading.Event()
        self.error: Exception | None = None
        self.free: set[str] = set()
        """Keys that are fetched whether or not the gate is open."""

    def fetch(self, key: str, fingerprint: str) -> EncodedChunk | None:
        self.fetched.append(key)
        self.asked.set()
        assert key in self.free or self.gate.wait(20)
        return super().fetch(key, fingerprint)

    def put_encoded(self, chunk: EncodedChunk) -> None:
        self.asked.set()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        super().put_encoded(chunk)


@pytest.fixture
def far() -> SlowStore:
    return SlowStore()


@pytest.fixture
def tiers(far: SlowStore) -> TieredStore:
    return TieredStore(MemoryStore(), far)


def fill(store: KVStore, number: int = len(ENTRIES)) -> None:
    for entry in ENTRIES[:number]:
        store.put(entry, make_cache())


def keys(store: KVStore) -> list[str]:
    return [entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]]


# -- reading ---------------------------------------------------------------------------------------


def test_a_chunk_read_is_near_from_then_on(tiers: TieredStore, far: SlowStore) -> None:
    far.gate.set()
    fill(far.wrapped, 1)
    assert tiers.near.open(ENTRIES[0].key, FINGERPRINT) is None
    for _ in range(3):
        reader = tiers.open(ENTRIES[0].key, FINGERPRINT)
        assert reader is not None and torch.equal(reader.layer(2)[0], make_cache().keys[2])
    assert far.fetched == [ENTRIES[0].key]
    assert tiers.near.open(ENTRIES[0].key, FINGERPRINT) is not None


def test_threads_that_want_one_chunk_fetch_it_once(tiers: TieredStore, far: SlowStore) -> None:
    fill(far.wrapped, 1)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(tiers.open(ENTRIES[0].key, FINGERPRINT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    far.gate.set()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and None not in found
    assert far.fetched == [ENTRIES[0].key]


def test_a_chunk_too_large_for_the_near_store_is_read_all_the_same(far: SlowStore) -> None:
    far.gate.set()
    tiers = TieredStore(MemoryStore(10), far)
    tiers.put(ENTRIES[0], make_cache())
    tiers.flush()
    for _ in range(2):
        reader = tiers.open(ENTRIES[0].key, FINGERPRINT)
        assert reader is not None and torch.equal(reader.layer(0)[0], make_cache().keys[0])
    assert tiers.near.nbytes() == 0


def test_both_budgets_hold(tmp_path: Path) -> None:
    with TieredStore(MemoryStore(3 * CHUNK_BYTES), DiskStore(tmp_path, 10 * CHUNK_BYTES)) as tiers:
        fill(tiers)
        tiers.flush()
        for entry in ENTRIES:
            tiers.open(entry.key, FINGERPRINT)
        assert 0 < tiers.near.nbytes() <= 3 * CHUNK_BYTES
        assert 3 * CHUNK_BYTES < tiers.far.nbytes() <= 10 * CHUNK_BYTES
        listed = keys(tiers)
        assert sorted(listed) == sorted(keys(tiers.far)) and listed
        assert all(tiers.open(key, FINGERPRINT) is not None for key in listed)


def test_a_damaged_near_chunk_is_fetched_again(tmp_path: Path) -> None:
    with TieredStore(DiskStore(tmp_path), RemoteStore(f"memory://{uuid4().hex}")) as tiers:
        fill(tiers, 1)
        tiers.flush()
        (path,) = tmp_path.rglob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-5] ^= 0xFF
        path.write_bytes(content)
        with pytest.warns(DamagedChunkWarning, match=path.name):
            reader = tiers.open(ENTRIES[0].key, FINGERPRINT)
        assert reader is not None and torch.equal(reader.token_ids, make_cache().token_ids)
        assert tiers.near.open(ENTRIES[0].key, FINGERPRINT) is not None


# -- writing ---------------------------------------------------------------------------------------


def test_who_puts_a_chunk_does_not_wait_for_the_far_store(tiers: TieredStore, far: SlowStore) -> None:
    tiers.put(ENTRIES[0], make_cache())
    assert far.asked.wait(20)
    assert keys(far.wrapped) == [] and keys(tiers) == [ENTRIES[0].key]
    assert tiers.open(ENTRIES[0].key, FINGERPRINT) is not None
    far.gate.set()
    tiers.flush()
    assert keys(far.wrapped) == [ENTRIES[0].key]


def test_a_chunk_evicted_before_it_arrived_is_read_on_its_way(far: SlowStore) -> None:
    tiers = TieredStore(MemoryStore(2 * CHUNK_BYTES), far)
    fill(tiers, 6)
    assert tiers.near.open(ENTRIES[0].key, FINGERPRINT) is None
    reader = tiers.open(ENTRIES[0].key, FINGERPRINT)
    assert reader is not None and torch.equal(reader.layer(0)[0], make_cache().keys[0])
    far.gate.set()


def test_the_last_put_wins(tiers: TieredStore, far: SlowStore) -> None:
    for seed in range(8):
        tiers.put(ENTRIES[0], make_cache(seed=seed))
    far.gate.set()
    tiers.flush()
    reader = far.wrapped.open(ENTRIES[0].key, FINGERPRINT)
    assert reader is not None and torch.equal(reader.layer(0)[0], make_cache(seed=7).keys[0])


@pytest.mark.parametrize("error", [StoreFullError("it is full"), StoreUnreachableError("it is gone"), OSError("odd")])
def test_what_did_not_arrive_is_told_by_flush_and_computed_again(
    tiers: TieredStore, far: SlowStore, error: Exception
) -> None:
    far.error = error
    far.gate.set()
    fill(tiers, 3)
    kind = type(error) if isinstance(error, StoreError) else StoreError
    with pytest.raises(kind, match=f"3 chunks were not stored; the first: .*{error}"):
        tiers.flush()
    assert keys(tiers) == []
    far.error = None
    fill(tiers, 3)
    tiers.flush()
    assert sorted(keys(tiers)) == sorted(keys(far.wrapped)) == sorted(entry.key for entry in ENTRIES[:3])


def test_closing_waits_for_what_is_on_its_way_and_warns_of_what_was_lost(tiers: TieredStore, far: SlowStore) -> None:
    fill(tiers, 8)
    threading.Timer(0.05, far.gate.set).start()
    tiers.close()
    assert len(keys(far.wrapped)) == 8
    losing = TieredStore(MemoryStore(), far)
    far.error = StoreUnreachableError("it is gone")
    losing.put(ENTRIES[9], make_cache())
    with pytest.warns(UserWarning, match="it is gone; such chunks are computed again"):
        losing.close()


def test_who_puts_waits_while_too_much_is_on_its_way() -> None:
    written: list[str] = []
    gate = threading.Event()

    def write(chunk: EncodedChunk) -> None:
        assert gate.wait(20)
        written.append(chunk.entry.key)

    back = WriteBack(write, max_pending_bytes=3 * CHUNK_BYTES)
    chunks = [EncodedChunk.of(entry, make_cache()) for entry in ENTRIES]
    done = threading.Event()

    def put_all() -> None:
        for chunk in chunks:
            back.put(chunk, lambda: None)
        done.set()

    threading.Thread(target=put_all, daemon=True).start()
    assert not done.wait(0.1)
    assert back._pending_bytes <= 3 * CHUNK_BYTES
    gate.set()
    assert done.wait(20)
    back.flush()
    assert sorted(written) == sorted(entry.key for entry in ENTRIES)
    back.close()


# -- removing --------------------------------------------------------------------------------------


def test_what_is_removed_is_gone_from_both(tiers: TieredStore, far: SlowStore) -> None:
    far.gate.set()
    fill(tiers, 3)
    assert tiers.remove([ENTRIES[0].key, "0" * 64]) == 1
    assert tiers.near.open(ENTRIES[0].key, FINGERPRINT) is far.wrapped.open(ENTRIES[0].key, FINGERPRINT) is None
    assert tiers.open(ENTRIES[0].key, FINGERPRINT) is None


def test_what_another_machine_removes_is_gone_from_the_near_store(tiers: TieredStore, far: SlowStore) -> None:
    far.gate.set()
    fill(tiers, 3)
    tiers.flush()
    _, mark = tiers.changes(FINGERPRINT, 0) or ([], 0)
    far.wrapped.remove([ENTRIES[1].key])
    assert tiers.changes(FINGERPRINT, mark) is None
    assert keys(tiers) == [ENTRIES[0].key, ENTRIES[2].key]
    assert tiers.near.open(ENTRIES[1].key, FINGERPRINT) is None
    assert tiers.near.open(ENTRIES[0].key, FINGERPRINT) is not None


def test_what_was_removed_between_two_processes_is_gone_from_the_cache_folder(tmp_path: Path) -> None:
    far = MemoryStore()
    with TieredStore(DiskStore(tmp_path), far) as before:
        fill(before, 3)
    far.remove([ENTRIES[1].key])
    tiers = TieredStore(DiskStore(tmp_path), far)
    assert keys(tiers) == [ENTRIES[0].key, ENTRIES[2].key]
    assert keys(tiers.near) == [ENTRIES[0].key, ENTRIES[2].key]


def test_an_outage_empties_no_near_store(tmp_path: Path) -> None:
    class Lost(WrappedStore):
        def changes(self, fingerprint: str, since: int) -> None:
            raise StoreUnreachableError("the network is down")

        def fetch(self, key: str, fingerprint: str) -> None:
            return None

    far = MemoryStore()
    with TieredStore(DiskStore(tmp_path), far) as before:
        fill(before, 3)
    tiers = TieredStore(DiskStore(tmp_path), Lost(far))
    assert keys(tiers) == []
    assert tiers.open(ENTRIES[0].key, FINGERPRINT) is not None
    tiers.far = far
    assert len(keys(tiers)) == len(keys(tiers.near)) == 3


def test_what_another_machine_adds_is_listed(tiers: TieredStore, far: SlowStore) -> None:
    far.gate.set()
    fill(tiers, 1)
    tiers.flush()
    _, mark = tiers.changes(FINGERPRINT, 0) or ([], 0)
    far.wrapped.put(ENTRIES[5], make_cache())
    assert (tiers.changes(FINGERPRINT, mark) or ([], 0))[0] == [ENTRIES[5]]


def test_threads_read_write_and_remove_at_once(
    make_store: Callable[[str], KVStore],
) -> None:
    store = make_store("memory before disk before remote")
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(24):
                entry = ENTRIES[(number + i) % len(ENTRIES)]
                if store.open(entry.key, FINGERPRINT) is None:
                    store.put(entry, make_cache())
                if i % 8 == 0:
                    store.remove([entry.key])
                store.prefetch([entry.key], FINGERPRINT)
                store.changes(FINGERPRINT, 0)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(3 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)
    store.flush()
    assert all(store.open(key, FINGERPRINT) is not None for key in keys(store))


def test_a_near_store_that_refuses_keeps_no_question_from_its_answer(far: SlowStore) -> None:
    """A cache folder whose disk was mounted anew, for reading only, say."""
    near, entry = SlowStore(), ENTRIES[0]
    near.error = StoreError("the file system is read-only")
    near.gate.set()
    far.gate.set()
    far.put(entry, make_cache())
    near.fetch = near.wrapped.fetch  # type: ignore[method-assign]
    with TieredStore(near, far) as tiers, pytest.warns(match="read-only"):
        reader = tiers.open(entry.key, FINGERPRINT)
    assert reader is not None and torch.equal(reader.layer(0)[0], make_cache().keys[0])


# -- a store that is closed ------------------------------------------------------------------------


def start(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Run a call on a thread that keeps no test from ending, and collect its error."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def test_a_closed_store_takes_no_more_and_says_so(tiers: TieredStore, far: SlowStore) -> None:
    far.gate.set()
    tiers.close()
    with pytest.raises(StoreError, match="is closed; open it again"):
        tiers.put(ENTRIES[0], make_cache())
    assert tiers.near.nbytes() == 0
    thread, errors = start(tiers.flush)
    thread.join(10)
    assert not thread.is_alive(), "waits for what nobody writes"
    assert not errors
    tiers.close()


def test_what_is_put_while_a_store_is_closed_arrives_or_is_refused(tiers: TieredStore, far: SlowStore) -> None:
    tiers.put(ENTRIES[0], make_cache())
    closing, closing_errors = start(tiers.close)
    assert far.asked.wait(10)
    refused = []
    for entry in ENTRIES[1:]:
        try:
            tiers.put(entry, make_cache())
        except StoreError:
            refused.append(entry.key)
    far.gate.set()
    closing.join(10)
    assert not closing.is_alive() and not closing_errors
    assert {*refused, *keys(far.wrapped)} == {entry.key for entry in ENTRIES}


def test_who_waits_for_room_is_told_that_the_store_is_closed() -> None:
    gate = threading.Event()
    write_back = WriteBack(lambda chunk: gate.wait(20), max_pending_bytes=CHUNK_BYTES)
    chunks = [EncodedChunk.of(entry, make_cache()) for entry in ENTRIES[:2]]
    write_back.put(chunks[0], lambda: None)
    putting, errors = start(lambda: write_back.put(chunks[1], lambda: None))
    closing, _ = start(write_back.close)
    putting.join(10)
    assert not putting.is_alive() and isinstance(errors[0], StoreError)
    gate.set()
    closing.join(10)
    assert not closing.is_alive()


def test_chunks_that_never_arrive_take_no_memory() -> None:
    """A process that only answers questions never flushes: errors must not hold what they are about."""

    def refuse(chunk: EncodedChunk) -> None:
        raise StoreUnreachableError("the network is down")

    write_back = WriteBack(refuse)
    chunks = [EncodedChunk.of(entry, make_cache()) for entry in ENTRIES]
    held = [weakref.ref(chunk) for chunk in chunks]
    for chunk in chunks:
        write_back.put(chunk, lambda: None)
    write_back.wait_for(entry.key for entry in ENTRIES)
    write_back._pool.close()
    del chunk, chunks
    gc.collect()
    assert [reference for reference in held if reference() is not None] == []
    with pytest.raises(StoreUnreachableError, match="24 chunks were not stored; the first: the network is down"):
        write_back.flush()
