"""Tiers, failing remote stores, options, tenants, secrets in messages."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from samkv_rag import SamKVEngine, open_store
from samkv_rag.exceptions import (
    ConfigurationError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
    StoreUnreachableWarning,
)
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.memory import MemoryStore
from samkv_rag.store.testing import data_of, key_of
from samkv_rag.store.tiers import TieredStore
from samkv_rag.store.unreachable import RemoteStore, without_secrets
from support import tiny
from support.engines import CHUNKS, PROMPT, MakeEngine
from support.stores import Remote


@pytest.fixture
def far() -> Remote:
    return Remote()


@pytest.fixture
def tiers(far: Remote) -> Iterator[TieredStore]:
    store = TieredStore(MemoryStore(), far)
    yield store
    far.go.set()
    store.close()


def test_a_chunk_read_from_far_is_kept_near(tiers: TieredStore, far: Remote) -> None:
    far.kept.put(key_of(1), data_of(1))
    for _ in range(3):
        assert tiers.get(key_of(1)) is not None
    assert far.requests == [(key_of(1), 1000)]


def test_what_is_near_alone_is_not_stored_and_can_be_put_again(tiers: TieredStore, far: Remote) -> None:
    tiers.near.put(key_of(1), data_of(1))
    assert not tiers.contains([key_of(1)])
    tiers.put(key_of(1), data_of(1))
    tiers.flush()
    assert tiers.contains([key_of(1)]) == far.kept.contains([key_of(1)]) == {key_of(1)}


def test_a_chunk_read_from_memory_is_used_on_disk_too(tmp_path: Path) -> None:
    disk = DiskStore(tmp_path, budget_bytes=3500)
    with TieredStore(MemoryStore(), disk) as tiers:
        for number in range(3):
            tiers.put(key_of(number), data_of(number))
            tiers.flush()
            for path in tmp_path.glob("chunks/*/*"):
                os.utime(path, (number, number))
        assert tiers.get(key_of(0)) is not None
        tiers.put(key_of(3), data_of(3))
        tiers.flush()
        assert disk.get(key_of(0)) is not None


def test_putting_does_not_wait_for_the_far_store(tiers: TieredStore, far: Remote) -> None:
    far.go.clear()
    tiers.put(key_of(1), data_of(1))
    assert not far.kept.contains([key_of(1)])
    assert tiers.get(key_of(1)) is not None
    far.go.set()
    tiers.flush()
    assert far.kept.contains([key_of(1)])


def test_prefetching_reads_all_at_once_and_each_once(tiers: TieredStore, far: Remote) -> None:
    for number in range(6):
        far.kept.put(key_of(number), data_of(number))
    far.go.clear()
    tiers.prefetch(map(key_of, range(6)))
    tiers.prefetch(map(key_of, range(6)))
    deadline = time.monotonic() + 5
    while len(far.requests) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    far.go.set()
    assert all(tiers.get(key_of(number)) for number in range(6))
    assert sorted(far.requests) == sorted((key_of(number), 1000) for number in range(6))


def test_prefetching_can_be_stopped(tiers: TieredStore, far: Remote) -> None:
    far.go.clear()
    cancel = tiers.prefetch(map(key_of, range(100)))
    cancel()
    far.go.set()
    tiers._readers.shutdown(wait=True)
    assert len(far.requests) < 20


def test_who_waits_for_a_prefetch_that_is_stopped_reads_the_chunk(tiers: TieredStore, far: Remote) -> None:
    far.kept.put(key_of(29), data_of(29))
    far.go.clear()
    cancel = tiers.prefetch(map(key_of, range(30)))
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(tiers.get, key_of(29))
        time.sleep(0.1)
        cancel()
        far.go.set()
        assert waiting.result(10) is not None


def test_a_prefetch_keeps_no_bytes_of_its_own(tiers: TieredStore, far: Remote) -> None:
    far.kept.put(key_of(1), data_of(1))
    far.go.clear()
    tiers.prefetch([key_of(1)])
    (fetch,) = tiers._fetching.values()
    far.go.set()
    assert fetch.result(10) is None
    assert tiers.near.contains([key_of(1)])


def test_a_chunk_deleted_while_it_is_prefetched_does_not_come_back(tiers: TieredStore, far: Remote) -> None:
    far.kept.put(key_of(1), data_of(1))
    far.at_once = threading.Barrier(2)
    tiers.prefetch([key_of(1)])
    deadline = time.monotonic() + 5
    while not far.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert tiers.delete([key_of(1)]) == 1
    far.at_once.wait(10)  # now the chunk arrives
    tiers._readers.shutdown(wait=True)
    assert not tiers.contains([key_of(1)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_writes_with_threads_of_its_own(tiers: TieredStore) -> None:
    tiers.put(key_of(1), data_of(1))
    tiers.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends it if it hangs
        tiers.put(key_of(2), data_of(2))
        tiers.flush()
        os._exit(0 if tiers.far.contains([key_of(2)]) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    ("refusal", "reported"), [(StoreFullError("no room"), StoreFullError), (ValueError("no room"), StoreError)]
)
def test_a_chunk_that_the_far_store_refuses_is_reported_and_stays_near(
    tiers: TieredStore, far: Remote, refusal: Exception, reported: type[StoreError]
) -> None:
    far.refusal = refusal
    tiers.put(key_of(1), data_of(1))
    tiers.put(key_of(2), data_of(2))
    with pytest.raises(reported, match=r"no room.*and 1 more chunks."):
        tiers.flush()
    tiers.flush()  # raised once only
    assert tiers.get(key_of(1)) is not None


def test_a_peek_through_tiers_is_no_use_and_brings_nothing_near(tmp_path: Path) -> None:
    with TieredStore(MemoryStore(), DiskStore(tmp_path)) as tiers:
        tiers.far.put(key_of(1), data_of(1))
        before = next(tiers.keys()).last_use_s
        assert tiers.peek(key_of(1)) is not None
        assert tiers.peek(key_of(2)) is None
        assert not tiers.near.contains([key_of(1)])
        assert next(tiers.keys()).last_use_s == before


def test_a_failed_write_is_reported_to_its_writer_and_forgotten_once_it_succeeds(
    tiers: TieredStore, far: Remote
) -> None:
    far.refusal = StoreFullError("no room")
    tiers.put(key_of(1), data_of(1))
    tiers.put(key_of(2), data_of(2))
    tiers._wait_for_writes()
    far.refusal = None
    tiers.put(key_of(3), data_of(3))
    tiers.flush([key_of(3)])
    with pytest.raises(StoreFullError, match="no room"):
        tiers.flush([key_of(1), key_of(3)])
    tiers.put(key_of(2), data_of(2))
    tiers.flush()


def test_a_failed_write_does_not_hold_its_bytes(tiers: TieredStore, far: Remote) -> None:
    data = bytes(1000)
    far.refusal, before = StoreFullError("no room"), sys.getrefcount(data)
    tiers.near = MemoryStore(1)
    tiers.put(key_of(1), data)
    tiers._wait_for_writes()
    far.refusal = None  # its traceback holds them as well
    assert sys.getrefcount(data) == before


def test_a_near_store_that_fails_keeps_nothing_from_the_far_one(
    tiers: TieredStore, far: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the folder is gone")

    monkeypatch.setattr(tiers.near, "put", fail)
    monkeypatch.setattr(tiers.near, "delete", fail)
    tiers.put(key_of(1), data_of(1))
    tiers.flush()
    assert far.kept.contains([key_of(1)])


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ("test://user:new@host/kv/", True),
        ("test://host/kv", True),
        ("test://host/other", False),
        ("test://host/kv?db=1", False),
        ("test://other@host/a@kv", False),
    ],
)
def test_a_catalog_stays_when_the_password_changes(other: str, is_same: bool) -> None:
    class At(Remote):
        def __init__(self, url: str) -> None:
            RemoteStore.__init__(self, url, ())

    assert (At("test://user:old@host/kv").catalog_path == At(other).catalog_path) is is_same


def test_an_unreachable_remote_costs_misses_only(make_engine: MakeEngine, far: Remote) -> None:
    engine = make_engine(store=far, chunks=CHUNKS)
    expected = engine.generate(PROMPT, max_new_tokens=4)
    far.away = True
    result = engine.generate(PROMPT, max_new_tokens=4)
    assert result.token_ids == expected.token_ids
    assert result.metrics.chunks_missed == 4
    far.away = False
    assert engine.generate(PROMPT, max_new_tokens=4).metrics.chunks_hit == 4


@pytest.mark.parametrize("scheme", ["redis", "s3"])
def test_a_server_that_never_answers_takes_bounded_time(make_engine: MakeEngine, scheme: str) -> None:
    with socket.socket() as silent:  # accepts connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        options: dict[str, Any] = {"endpoint": f"http://{host}", "region": "us-east-1", "skip_signature": True}
        url = f"redis://{host}" if scheme == "redis" else "s3://samkv/kv"
        store = open_store(url, timeout_s=0.3, storage_options=options if scheme == "s3" else {})
        engine = make_engine(store=store)
        engine.announce(CHUNKS)
        started = time.monotonic()
        with pytest.warns(StoreUnreachableWarning, match="cannot be reached"):
            assert engine.generate(PROMPT, max_new_tokens=1).metrics.chunks_missed == 4
        assert time.monotonic() - started < 15
        with pytest.raises(StoreUnreachableError, match="it is tried again in"):
            store.contains([key_of(1)])


def test_a_full_redis_server_raises(redis: Any) -> None:
    store = open_store(redis.url, memory_bytes=0)
    store._client.config_set("maxmemory", "1mb")  # type: ignore[attr-defined]
    try:
        with pytest.raises(StoreFullError, match=r"no memory left .maxmemory. and its policy evicts nothing"):
            for number in range(50):
                store.put(key_of(number), data_of(number, num_bytes=200_000))
    finally:
        store._client.config_set("maxmemory", "0")  # type: ignore[attr-defined]
        store.delete([found.key for found in store.keys()])


def test_foreign_keys_on_a_redis_server_are_ignored(redis: Any) -> None:
    store = open_store(redis.url, memory_bytes=0)
    client = store._client  # type: ignore[attr-defined]
    client.set(b"samkv:\xff\xfe not a key", b"x")
    client.set("another application's", "x")
    try:
        assert key_of(1) not in {found.key for found in store.keys()}
    finally:
        client.delete(b"samkv:\xff\xfe not a key", "another application's")


# Options


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        (":memory:", {"disk_bytes": 1}, "disk_bytes means nothing for a store at ':memory:'"),
        ("kv", {"cache_folder": "x"}, "cache_folder means nothing"),
        ("kv", {"disk_byte": 1}, "unknown option disk_byte; did you mean disk_bytes"),
        ("kv", {"disk_bytes": 0}, "disk_bytes is 0; it must be an integer of at least 1"),
        ("kv", {"disk_bytes": True}, "disk_bytes is True"),
        ("s3://bucket/kv", {"disk_bytes": 1}, "no cache_folder is given for it to bound"),
        ("s3://bucket/kv", {"timeout_s": 0}, "timeout_s is 0; it must be a number from"),
        ("s3://bucket/kv", {"storage_options": [1]}, "storage_options is of type list"),
        ("s3://", {}, "the URL names no place"),
        ("magic://x", {}, "is not a URL that obstore opens"),
        (MemoryStore(), {"memory_bytes": 1}, "memory_bytes means nothing for a store at 'MemoryStore'"),
    ],
)
def test_wrong_options_are_refused(location: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_store(location, **options)


def test_locations_and_options_make_tiers(tmp_path: Path) -> None:
    assert isinstance(open_store(":memory:", memory_bytes=5), MemoryStore)
    assert isinstance(open_store(tmp_path / "a", disk_bytes=5), DiskStore)
    tiers = open_store(tmp_path / "b", memory_bytes=5)
    assert isinstance(tiers, TieredStore) and isinstance(tiers.near, MemoryStore)
    remote = open_store("s3://bucket/kv", storage_options={"region": "us-east-1", "skip_signature": True})
    assert isinstance(remote, TieredStore) and isinstance(remote.near, MemoryStore)


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("redis://user:hun/ter2@host:1", "redis://**********@host:1"),
        ("redis://user:hun@ter2@host", "redis://**********@host"),
        ("redis://host?password=hunter2", "redis://host?**********"),
        ("s3://bucket/kv?sig=hunter2", "s3://bucket/kv?**********"),
        ("folder/with@and?marks", "folder/with@and?marks"),
        (":memory:", ":memory:"),
        ("s3://bucket/a@b", "s3://**********@b"),  # better to mask too much
        ("redis://host:6379/2", "redis://host:6379/2"),
    ],
)
def test_secrets_are_masked(location: str, shown: str) -> None:
    assert without_secrets(location) == shown


def test_no_message_shows_a_password() -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("redis://user:hunter2@host", {"disk_bytes": 1}),
        ("s3://bucket/kv", {"storage_options": {"secret_access_kee": "hunter2"}}),
    ]
    for url, options in wrong:
        with pytest.raises(ConfigurationError) as refused:
            open_store(url, **options)
        assert "hunter2" not in str(refused.value)


# Tenants


@pytest.mark.parametrize(
    "other", [{"namespace": "b"}, {"namespace": "a", "store_secret": "s"}, {"namespace": ""}], ids=str
)
def test_tenants_do_not_see_each_other(other: dict[str, str]) -> None:
    store = MemoryStore()

    def engine(**options: str) -> SamKVEngine:
        model, tokenizer = tiny.model(), tiny.tokenizer()
        return SamKVEngine.from_pretrained(model, tokenizer=tokenizer, store=store, method=tiny.method(), **options)  # type: ignore[arg-type]

    first, second = engine(namespace="a"), engine(**other)
    first.add_chunks(CHUNKS, sources=list("abcd"))
    assert not second.has_chunk(CHUNKS[0])
    assert second.sources() == []
    assert second.remove_chunks(CHUNKS) == second.prune([]) == second.remove_sources(list("abcd")) == 0
    second.announce(CHUNKS)
    assert second.generate(PROMPT, max_new_tokens=1).metrics.chunks_missed == 4
    assert second.prune([]) == 4
    assert all(map(first.has_chunk, CHUNKS))
    assert engine(namespace="a").has_chunk(CHUNKS[0])


def test_models_of_other_weights_do_not_share_chunks(make_engine: MakeEngine) -> None:
    store = MemoryStore()
    make_engine("llama", store, chunks=CHUNKS)
    assert not make_engine("mistral", store).has_chunk(CHUNKS[0])
    assert make_engine("llama", store).has_chunk(CHUNKS[0])
