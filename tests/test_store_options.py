"""Values of the wrong kind: each a ConfigurationError that says the value, what it may be and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store import DiskStore, MemoryStore, RedisStore, RemoteStore, TieredStore, open_store
from samkv_rag.store.management.inventory import Scope
from samkv_rag.store.management.pruning import PruneRule
from samkv_rag.store.namespaces import scoped_fingerprint
from samkv_rag.store.units import parse_bytes, parse_seconds

NAN = float("nan")
URL = "memory://options"
REDIS = "redis://127.0.0.1:1"


def refused(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("location", [None, 5, b"kv", ["kv"], 1.5])
def test_a_location_that_is_none(location: Any) -> None:
    refused(lambda: open_store(location), f"store is {location!r}", "a folder's path or a URL")


@pytest.mark.parametrize("location", ["kv\0", "  "])
def test_a_folder_that_is_none(location: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: open_store(location), "it must be")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("timeout_s", ["5", None, True, NAN, float("inf"), 0, -1, 10**12, [5]])
@pytest.mark.parametrize("url", [URL, REDIS])
def test_timeouts(url: str, timeout_s: Any) -> None:
    refused(lambda: open_store(url, timeout_s=timeout_s), f"timeout_s is {timeout_s!r}", "seconds", "> 0")


@pytest.mark.parametrize("refresh_s", ["5", None, False, NAN, float("inf"), -1])
def test_ages_of_the_list(refresh_s: Any) -> None:
    refused(lambda: open_store(URL, refresh_s=refresh_s), f"refresh_s is {refresh_s!r}", ">= 0")


@pytest.mark.parametrize("storage_options", ["key=1", 5, ["a"], [("a", 1)], {1: 2}, {"timeout_s": 3}, {"refresh_s": 3}])
@pytest.mark.parametrize("url", [URL, REDIS])
def test_storage_options(url: str, storage_options: Any) -> None:
    refused(lambda: open_store(url, storage_options=storage_options), "storage_options", "dictionary")


def test_storage_options_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(URL, storage_options=[("secret", "hunter2")])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("cache_folder", [5, "", b"kv", "s3://bucket/kv", ":memory:", "kv\0"])
def test_cache_folders(cache_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: open_store(URL, cache_folder=cache_folder), "cache_folder", repr(cache_folder))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory_bytes", [False, True, 1.5, "1", -1])
@pytest.mark.parametrize("location", ["kv", URL])
def test_memory_budgets(location: str, memory_bytes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: open_store(location, memory_bytes=memory_bytes), f"memory_bytes is {memory_bytes!r}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("secret", [123, ["a"], 1.5, "", b""])
def test_secrets(make_engine: Callable[..., SamKVEngine], secret: Any) -> None:
    refused(lambda: scoped_fingerprint("a" * 64, "tenant", secret), "store_secret")
    with pytest.raises(ConfigurationError) as caught:
        scoped_fingerprint("a" * 64, "tenant", 987654321)  # type: ignore[arg-type]
    assert "987654321" not in str(caught.value), "it is a secret all the same"


@pytest.mark.parametrize("folder", [5, "", None, b"kv", "kv\0"])
def test_the_disk_stores_folder(folder: Any) -> None:
    refused(lambda: DiskStore(folder), repr(folder))


@pytest.mark.parametrize("kind", [RemoteStore, RedisStore])
@pytest.mark.parametrize("url", [5, None, "", b"redis://x"])
def test_urls(kind: Any, url: Any) -> None:
    refused(lambda: kind(url), f"url is {url!r}")


@pytest.mark.parametrize("url", ["redis://host:port", "redis://host:99999999", "redis://[x", "nosuch://x"])
def test_urls_that_lead_nowhere(url: str) -> None:
    refused(lambda: open_store(url), "no store can be opened at")


def test_tiers_are_two_stores(tmp_path: Path) -> None:
    near = MemoryStore()
    refused(lambda: TieredStore(near, "kv"), "far is 'kv'", "open_store")  # type: ignore[arg-type]
    refused(lambda: TieredStore(None, near), "near is None", "open_store")  # type: ignore[arg-type]
    refused(lambda: TieredStore(near, near), "one and the same")


@pytest.mark.parametrize("text", ["1" * 400 + "GB", "9" * 5000])
def test_amounts_past_all_bounds(text: str) -> None:
    refused(lambda: parse_bytes(text), "is not a number of bytes")
    refused(lambda: parse_seconds(text.removesuffix("GB") + "d"), "is not a length of time")


def test_amounts_are_exact() -> None:
    assert parse_bytes("9007199254740993") == 9007199254740993
    assert parse_bytes("0.1GB") == 100_000_000


@pytest.mark.parametrize(
    "rule",
    [
        {"max_bytes": -1},
        {"max_bytes": "5"},
        {"max_bytes": 1.5},
        {"older_than_s": NAN},
        {"older_than_s": -1},
        {"older_than_s": "5"},
    ],
)
def test_what_is_pruned(rule: dict[str, Any]) -> None:
    ((name, value),) = rule.items()
    refused(lambda: PruneRule(**rule), f"{name} is {value!r}")


def test_an_empty_model_is_not_every_model() -> None:
    """A script's empty variable must not empty a store."""
    refused(lambda: PruneRule(Scope(model="")), "model is ''")
