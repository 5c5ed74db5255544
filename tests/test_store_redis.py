"""What only a Redis server can do wrong: full, evicting, gone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import servers
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import DamagedChunkWarning
from samkv_rag.exceptions import ConfigurationError, StoreFullError, StoreUnreachableError, StoreUnreachableWarning
from samkv_rag.store import RedisStore
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.shared.reachability import Outage

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(200)]


@pytest.fixture
def store(redis: servers.RedisServer) -> Iterator[RedisStore]:
    with RedisStore(redis.url) as store:
        store._client.flushall()
        yield store
        store._client.config_set("maxmemory", 0)
        store._client.config_set("maxmemory-policy", "noeviction")


def keys(store: RedisStore) -> list[str]:
    return [entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]]


def bound_memory(client: Any, policy: str) -> None:
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)


def test_two_machines_see_each_other(store: RedisStore, redis: servers.RedisServer) -> None:
    with RedisStore(redis.url) as other:
        store.put(ENTRIES[0], make_cache())
        _, mark = other.changes(FINGERPRINT, 0) or ([], 0)
        assert other.open(ENTRIES[0].key, FINGERPRINT) is not None
        store.remove([ENTRIES[0].key])
        assert other.changes(FINGERPRINT, mark) is None


def test_a_full_server_says_so_and_loses_nothing(store: RedisStore) -> None:
    bound_memory(store._client, "noeviction")
    num_stored = 0
    with pytest.raises(StoreFullError, match=r"is full .*prune the store or raise maxmemory"):
        for entry in ENTRIES:
            store.put(entry, make_cache())
            num_stored += 1
    assert 0 < num_stored == len(keys(store))
    assert all(store.open(entry.key, FINGERPRINT) is not None for entry in ENTRIES[:num_stored])
    assert store.remove([entry.key for entry in ENTRIES[:10]]) == 10


def test_what_the_server_evicts_is_a_miss(store: RedisStore) -> None:
    bound_memory(store._client, "allkeys-random")
    for entry in ENTRIES:
        store.put(entry, make_cache())
    for entry in ENTRIES:
        reader = store.open(entry.key, FINGERPRINT)
        assert reader is None or reader.layout == entry.layout
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    store._client.config_set("maxmemory", 0)
    store.put(ENTRIES[0], make_cache())
    changes = store.changes(FINGERPRINT, mark)
    assert changes is None or ENTRIES[0] in changes[0], "marks rise even where the server lost the counter"


def test_a_chunk_deleted_behind_our_back_is_listed_no_more(store: RedisStore) -> None:
    for entry in ENTRIES[:2]:
        store.put(entry, make_cache())
    store.refer(FINGERPRINT, {"a": ENTRIES[0].key})
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    store._client.delete(f"samkv:1:chunk:{ENTRIES[0].key}")
    assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    assert store.changes(FINGERPRINT, mark) is None
    assert keys(store) == [ENTRIES[1].key]
    assert store.references(FINGERPRINT) == {"a": ENTRIES[0].key}, "for when it is computed again"


@pytest.mark.parametrize("where", [9, 400, 3000, -1])
def test_a_damaged_value_is_a_miss_that_names_it(store: RedisStore, where: int) -> None:
    store.put(ENTRIES[0], make_cache())
    name = f"samkv:1:chunk:{ENTRIES[0].key}"
    content = bytearray(store._client.get(name))
    content[where] ^= 0x11
    store._client.set(name, bytes(content))
    with pytest.warns(DamagedChunkWarning, match=name):
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None


def test_a_chunk_larger_than_a_server_takes_is_refused(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samkv_rag.store.redis.store._MAX_VALUE_BYTES", 1000)
    with pytest.raises(StoreFullError, match=r"is more than redis://127\.0\.0\.1"):
        store.put(ENTRIES[0], make_cache())


def test_many_sources_go_in_batches(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samkv_rag.store.redis.store._BATCH", 7)
    for entry in ENTRIES[:20]:
        store.put(entry, make_cache())
    forwards = {f"source {i}": entry.key for i, entry in enumerate(ENTRIES[:20])}
    backwards = dict(zip(forwards, reversed(forwards.values()), strict=True))
    assert store.refer(FINGERPRINT, forwards) == store.refer(FINGERPRINT, backwards) == 0
    assert store.references(FINGERPRINT) == backwards
    assert store.release(FINGERPRINT, list(forwards)[:15]) == 15
    assert store.remove(forwards.values()) == 5
    assert store.references(FINGERPRINT) == {}


def test_another_programs_keys_are_left_alone(store: RedisStore) -> None:
    store._client.set("theirs", "value")
    store.put(ENTRIES[0], make_cache())
    assert store.nbytes() == len(EncodedChunk.of(ENTRIES[0], make_cache()).data)
    store.remove(keys(store))
    assert store._client.get("theirs") == b"value"


def test_unknown_client_options_are_refused(redis: servers.RedisServer) -> None:
    with pytest.raises(ConfigurationError, match="unexpected keyword argument 'colour'"):
        RedisStore(redis.url, colour="red")


def test_a_server_that_goes_makes_misses_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    with servers.redis_server() as server, RedisStore(server.url, timeout_s=2) as store:
        monkeypatch.setattr(store, "_outage", Outage("here", retry_after_s=10, clock=lambda: now_s[0]))
        store.put(ENTRIES[0], make_cache())
        _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
        server.stop()
        with pytest.warns(StoreUnreachableWarning, match="here cannot be reached"):
            assert store.open(ENTRIES[0].key, FINGERPRINT) is None
        with pytest.raises(StoreUnreachableError):
            store.changes(FINGERPRINT, mark)
        with pytest.raises(StoreUnreachableError, match="it is tried again in 10 s"):
            store.put(ENTRIES[1], make_cache())
        server.start()
        now_s[0] = 11
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.changes(FINGERPRINT, mark) is None, "it lost what it held"
            store.put(ENTRIES[1], make_cache())
            assert keys(store) == [ENTRIES[1].key]


def test_an_entry_of_another_release_hides_no_other_chunk(store: RedisStore) -> None:
    for entry in ENTRIES[:2]:
        store.put(entry, make_cache())
    store._client.hset(f"samkv:1:{FINGERPRINT}:entries", ENTRIES[0].key, '{"version": 3}')
    assert keys(store) == [ENTRIES[1].key]


@pytest.mark.parametrize("timeout_s", [0, -1])
def test_a_timeout_that_is_none_is_refused(redis: servers.RedisServer, timeout_s: float) -> None:
    with pytest.raises(ConfigurationError, match=f"timeout_s is {timeout_s}.*> 0"):
        RedisStore(redis.url, timeout_s=timeout_s)
