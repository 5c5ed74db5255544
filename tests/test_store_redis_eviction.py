"""A Redis server that evicts: what goes, what must not follow from it, what is said of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import servers
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag.exceptions import EvictionPolicyWarning
from samkv_rag.store import RedisStore

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(200)]
KEY = ENTRIES[0].key


@pytest.fixture
def store(redis: servers.RedisServer) -> Iterator[RedisStore]:
    with RedisStore(redis.url) as store:
        store._client.flushall()
        yield store
        store._client.config_set("maxmemory", 0)
        store._client.config_set("maxmemory-policy", "noeviction")
        store._client.acl_deluser("limited")


def bound_memory(client: Any, policy: str, spare_bytes: int = 300_000) -> None:
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + spare_bytes)


def is_kept(store: RedisStore, key: str) -> bool:
    return bool(store._client.exists(f"samkv:1:chunk:{key}"))


def test_no_list_that_the_server_evicts_makes_a_chunk_in_use_look_unused(store: RedisStore) -> None:
    num_lists = 1
    while num_lists:
        store._client.flushall()
        store.put(ENTRIES[0], make_cache())
        store.refer(FINGERPRINT, {"a": KEY, "b": KEY})
        lists = sorted(name for name in store._client.scan_iter("*") if b":chunk:" not in name)
        num_lists = num_lists + 1 if num_lists < len(lists) else 0
        store._client.delete(lists[num_lists - 1])
        store.release(FINGERPRINT, ["a"])
        store.refer(FINGERPRINT, {"c": ENTRIES[1].key})
        assert is_kept(store, KEY), f"b's chunk went after {lists[num_lists - 1]!r}"


def test_a_policy_for_volatile_keys_evicts_chunks_alone(store: RedisStore) -> None:
    bound_memory(store._client, "volatile-lru")
    sources = {f"source {i}": entry.key for i, entry in enumerate(ENTRIES)}
    store.refer(FINGERPRINT, sources)
    for entry in ENTRIES:
        store.put(entry, make_cache())
    assert {entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]} == set(sources.values())
    found = [entry.key for entry in ENTRIES if store.open(entry.key, FINGERPRINT) is not None]
    assert 0 < len(found) < len(ENTRIES)
    assert store.references(FINGERPRINT) == sources
    assert {entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]} == set(found)


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_policy_that_evicts_lists_is_told_when_the_store_is_opened(
    store: RedisStore, redis: servers.RedisServer, policy: str
) -> None:
    bound_memory(store._client, policy, 10**8)
    with pytest.warns(EvictionPolicyWarning, match=f"{policy}.*set maxmemory-policy to volatile-"):
        RedisStore(redis.url).close()


@pytest.mark.parametrize("policy", ["noeviction", "volatile-lru", "volatile-ttl"])
def test_a_policy_that_evicts_no_lists_is_not_worth_a_word(
    store: RedisStore, redis: servers.RedisServer, policy: str
) -> None:
    bound_memory(store._client, policy, 10**8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RedisStore(redis.url).close()


def test_a_policy_without_a_bound_evicts_nothing(store: RedisStore, redis: servers.RedisServer) -> None:
    store._client.config_set("maxmemory-policy", "allkeys-lru")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RedisStore(redis.url).close()


def test_who_may_not_ask_for_the_policy_may_still_open_a_store(store: RedisStore, redis: servers.RedisServer) -> None:
    bound_memory(store._client, "allkeys-lru", 10**8)
    store._client.acl_setuser("limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"])
    store._client.execute_command("ACL", "SETUSER", "limited", "-info")
    with RedisStore(redis.url.replace("://", "://limited:secret@")) as limited:
        limited.put(ENTRIES[0], make_cache())
        assert limited.open(KEY, FINGERPRINT) is not None


def test_reading_does_not_depend_on_being_allowed_to_write(store: RedisStore, redis: servers.RedisServer) -> None:
    store.put(ENTRIES[0], make_cache())
    store.put(ENTRIES[1], make_cache())
    store._client.delete(f"samkv:1:chunk:{KEY}")
    store._client.acl_setuser("limited", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@read"])
    store._client.execute_command("ACL", "SETUSER", "limited", "+ping", "+client", "+hello", "+info")
    with RedisStore(redis.url.replace("://", "://limited:secret@")) as reader:
        assert reader.open(KEY, FINGERPRINT) is None
        assert reader.open(ENTRIES[1].key, FINGERPRINT) is not None


def test_a_chunk_put_again_while_it_was_missed_stays(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(ENTRIES[0], make_cache())
    store._client.delete(f"samkv:1:chunk:{KEY}")
    count = store._count

    def count_late(*arguments: Any) -> int:
        store.put(ENTRIES[0], make_cache())
        return count(*arguments)

    monkeypatch.setattr(store, "_count", count_late)
    assert store.open(KEY, FINGERPRINT) is None
    assert store.open(KEY, FINGERPRINT) is not None


def test_references_are_released_on_a_full_server(store: RedisStore) -> None:
    for entry in ENTRIES[:3]:
        store.put(entry, make_cache())
    store.refer(FINGERPRINT, {"a": KEY, "b": KEY, "c": ENTRIES[1].key})
    store._client.config_set("maxmemory", 1)
    assert store.release(FINGERPRINT, ["a", "c"]) == 1
    assert store.release(FINGERPRINT, ["b"]) == 1
    assert store.references(FINGERPRINT) == {}


@pytest.mark.parametrize("source", ["s:a", "n:a", "", "a:b", "ä\n"])
def test_any_source_is_told_from_a_count(store: RedisStore, source: str) -> None:
    store.put(ENTRIES[0], make_cache())
    store.refer(FINGERPRINT, {source: KEY, f"n:{KEY}": KEY})
    assert store.references(FINGERPRINT) == {source: KEY, f"n:{KEY}": KEY}
    assert store.release(FINGERPRINT, [source]) == 0
    assert store.remove([KEY]) == 1
    assert store.references(FINGERPRINT) == {}
