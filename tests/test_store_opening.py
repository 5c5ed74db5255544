"""From locations and options to stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import servers
from samkv_rag.exceptions import ConfigurationError, StoreError, StoreFormatError, StoreUnreachableError
from samkv_rag.store import DiskStore, KVStore, MemoryStore, RedisStore, RemoteStore, TieredStore, open_store


def url() -> str:
    return f"memory://{uuid4().hex}"


def tiers(store: KVStore) -> list[type[KVStore]]:
    return [type(store.near), *tiers(store.far)] if isinstance(store, TieredStore) else [type(store)]


def test_each_location_has_its_tiers(tmp_path: Path) -> None:
    cache = {"cache_folder": tmp_path / "cache"}
    cases: list[tuple[str | Path, dict[str, Any], list[type[KVStore]]]] = [
        (":memory:", {}, [MemoryStore]),
        (":memory:", {"memory_bytes": 1 << 20}, [MemoryStore]),
        (tmp_path / "new" / "folder", {}, [DiskStore]),
        (str(tmp_path / "other"), {"memory_bytes": 1 << 20, "disk_bytes": 1 << 22}, [MemoryStore, DiskStore]),
        (url(), {}, [MemoryStore, RemoteStore]),
        (url(), {"memory_bytes": 0}, [RemoteStore]),
        (url(), cache, [DiskStore, RemoteStore]),
        (url(), {**cache, "disk_bytes": 1 << 22, "memory_bytes": 1 << 20}, [MemoryStore, DiskStore, RemoteStore]),
        (f"file://{tmp_path}/remote", {"refresh_s": 0, "timeout_s": 3}, [MemoryStore, RemoteStore]),
    ]
    for location, options, expected in cases:
        with open_store(location, **options) as store:
            assert tiers(store) == expected


def test_budgets_and_options_arrive(tmp_path: Path) -> None:
    memory = open_store(":memory:", memory_bytes=1234)
    assert isinstance(memory, MemoryStore) and memory.budget_bytes == 1234
    with open_store(url(), memory_bytes=5678, cache_folder=tmp_path, disk_bytes=9999, timeout_s=3) as store:
        assert isinstance(store, TieredStore) and isinstance(store.near, MemoryStore)
        assert isinstance(store.far, TieredStore) and isinstance(store.far.near, DiskStore)
        assert isinstance(store.far.far, RemoteStore)
        assert (store.near.budget_bytes, store.far.near.budget_bytes) == (5678, 9999)
        assert store.far.far._files.timeout_s == 3


def test_a_redis_url(redis: servers.RedisServer) -> None:
    with open_store(redis.url.replace("redis", "valkey"), storage_options={"client_name": "samkv"}) as store:
        assert tiers(store) == [MemoryStore, RedisStore]


def test_a_store_is_returned_as_it_is() -> None:
    store = MemoryStore()
    assert open_store(store) is store
    with pytest.raises(ConfigurationError, match="memory_bytes means nothing for a store at 'MemoryStore'"):
        open_store(store, memory_bytes=3)


@pytest.mark.parametrize(
    ("location", "options", "message"),
    [
        ("", {}, "must be ':memory:', a folder's path or a URL"),
        (":memory:", {"memory": 3}, "unknown option memory; known are cache_folder"),
        (":memory:", {"memory_bytes": 0}, "memory_bytes is 0; it must be a number of bytes"),
        (":memory:", {"memory_bytes": "1 GB"}, "memory_bytes is '1 GB'"),
        (":memory:", {"disk_bytes": 3}, "disk_bytes means nothing for a store at ':memory:'"),
        ("folder", {"cache_folder": "x"}, "cache_folder means nothing"),
        ("folder", {"disk_bytes": -1}, "disk_bytes is -1"),
        ("folder", {"memory_bytes": True}, "memory_bytes is True"),
        ("memory://x", {"disk_bytes": 3}, "no cache_folder is given"),
        ("memory://x", {"bucket": 3}, "unknown option bucket"),
        ("memory://x", {"timeout_s": 0}, "timeout_s is 0"),
        ("redis://user:password@127.0.0.1/0", {"refresh_s": 3}, "refresh_s means nothing for a store at 'redis://127"),
        ("gopher://x", {}, "no store can be opened at gopher://x"),
    ],
)
def test_wrong_options_are_refused(
    location: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        open_store(location, **options)


@pytest.mark.parametrize(
    ("package", "where", "extra"), [("fsspec", "memory://x", "remote"), ("redis", "redis://x", "redis")]
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str, where: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf"needs {package}: pip install 'samkv-rag\[{extra}\]'"):
        open_store(where)


def test_a_server_that_is_not_there_is_told_at_once_and_no_password_with_it() -> None:
    with pytest.raises(StoreUnreachableError, match=r"^redis://127.0.0.1:\d+ cannot be reached") as caught:
        open_store(f"redis://user:password@127.0.0.1:{servers.free_port()}")
    assert "password" not in str(caught.value)


def test_a_bucket_that_is_not_there_is_told_at_once(s3_options: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"no-such-bucket/kv is not there .*create its bucket"):
        open_store("s3://no-such-bucket/kv", storage_options=s3_options)


@pytest.mark.parametrize(
    ("content", "message"), [('{"samkv_store": 77}', "has layout version 77"), ("[]", "is not samkv_rag's")]
)
def test_another_version_or_something_else_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StoreFormatError, match=message):
        RemoteStore(f"file://{tmp_path}")
