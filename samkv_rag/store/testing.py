"""A pytest suite of the store contract. Inherit from it and supply one fixture.

class TestMyStore(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[Store]:
        store = MyStore(...)  # empty
        yield store
        store.close()
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from samkv_rag.exceptions import DamagedChunkError, StoreError
from samkv_rag.store.base import Store, read_bytes


def key_of(number: int) -> str:
    """A key of the form that the engine uses."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def data_of(number: int, num_bytes: int = 1000) -> bytes:
    """Bytes that differ everywhere from those of other numbers."""
    block = hashlib.sha256(f"data {number}".encode()).digest()
    return (block * (num_bytes // len(block) + 1))[:num_bytes]


class StoreContract:
    """The promises of every store. Each test gets an empty ``store``."""

    def test_what_was_put_is_there(self, store: Store) -> None:
        assert store.get(key_of(1)) is None
        assert store.contains([key_of(1)]) == set()
        store.put(key_of(1), data_of(1))
        store.put(key_of(2), data_of(2, num_bytes=0))
        assert store.contains([key_of(1), key_of(2), key_of(3)]) == {key_of(1), key_of(2)}
        assert store.get_beginning(key_of(3), 10) is None
        for number, num_bytes, asked in ((1, 1000, 10), (1, 1000, 5000), (2, 0, 10)):
            for blob in (store.get(key_of(number)), store.get_beginning(key_of(number), asked)):
                assert blob is not None
                assert blob.is_near in (True, False)
                assert (blob.size, bytes(read_bytes(blob))) == (num_bytes, data_of(number, num_bytes))

    def test_any_part_is_read_into_the_callers_buffers(self, store: Store) -> None:
        store.put(key_of(1), data_of(1))
        blob = store.get(key_of(1))
        assert blob is not None
        first, second, none = bytearray(10), bytearray(300), bytearray(0)
        blob.read([(17, first), (27, none), (27, second)])
        assert bytes(first + second) == data_of(1)[17:327]
        blob.read([(500, first), (3, second)])
        assert bytes(first + second) == data_of(1)[500:510] + data_of(1)[3:303]
        with pytest.raises(DamagedChunkError):
            blob.read([(0, first), (991, bytearray(10))])

    def test_putting_again_replaces(self, store: Store) -> None:
        """An older blob returns the old bytes or raises, never a mixture; the new blob has another identity."""
        store.put(key_of(1), data_of(1))
        before = store.get(key_of(1))
        store.put(key_of(1), data_of(2, num_bytes=500))
        after = store.get(key_of(1))
        assert before is not None
        assert after is not None
        assert before.identity != after.identity
        assert bytes(read_bytes(after)) == data_of(2, num_bytes=500)
        with suppress(DamagedChunkError):
            assert bytes(read_bytes(before)) == data_of(1)
        store.flush()
        assert [(found.key, found.num_bytes) for found in store.keys()] == [(key_of(1), 500)]

    def test_what_was_deleted_is_gone_and_the_rest_is_listed(self, store: Store) -> None:
        assert list(store.keys()) == []
        for number in range(20):
            store.put(key_of(number), data_of(number, num_bytes=100 + number))
        assert store.delete([key_of(0), key_of(2), key_of(0), key_of(99)]) == 2
        assert store.delete([]) == 0
        left = {key_of(number): 100 + number for number in range(20) if number not in (0, 2)}
        assert store.get(key_of(0)) is None
        assert store.contains(map(key_of, range(20))) == left.keys()
        assert {found.key: found.num_bytes for found in store.keys()} == left

    @pytest.mark.parametrize("key", ["", "../../etc/passwd", "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n"])
    def test_only_hashes_are_keys(self, store: Store, key: str) -> None:
        try:
            store.put(key, b"data")
        except StoreError:
            assert list(store.keys()) == []

    def test_many_blobs_are_open_at_once(self, store: Store) -> None:
        for number in range(50):
            store.put(key_of(number), data_of(number))
        blobs = [store.get(key_of(number)) for number in range(50) for _ in range(30)]
        assert all(blob is not None and bytes(read_bytes(blob, 0, 8)) for blob in blobs)

    def test_prefetching_changes_nothing(self, store: Store) -> None:
        store.put(key_of(1), data_of(1))
        cancel = store.prefetch([key_of(1), key_of(2)])
        blob = store.get(key_of(1))
        cancel()
        cancel()
        assert blob is not None
        assert bytes(read_bytes(blob)) == data_of(1)
        assert store.get(key_of(2)) is None

    def test_threads_do_not_disturb_each_other(self, store: Store) -> None:
        def work(first: int) -> None:
            for number in range(first, first + 10):
                store.put(key_of(number), data_of(number))
                blob = store.get(key_of(number))
                assert blob is not None
                assert bytes(read_bytes(blob)) == data_of(number)
                assert number % 2 == 0 or store.delete([key_of(number)]) == 1

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(0, 60, 10)))
        assert len(store.contains(map(key_of, range(60)))) == 30
