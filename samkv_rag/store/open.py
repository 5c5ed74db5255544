"""Opens a store, or tiers of stores, by its location."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from samkv_rag.checks import refuse_unknown, require_integer, require_number
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.base import Store
from samkv_rag.store.disk import DiskStore, as_folder
from samkv_rag.store.memory import MemoryStore
from samkv_rag.store.objects import ObjectStore
from samkv_rag.store.redis import SCHEMES, RedisStore
from samkv_rag.store.tiers import TieredStore
from samkv_rag.store.unreachable import without_secrets

_MEMORY_BYTES_BEFORE_REMOTE = 1 << 30
_MAX_SECONDS = 10**6
_REMOTE_OPTIONS = ("memory_bytes", "disk_bytes", "cache_folder", "timeout_s", "storage_options")


def open_store(location: str | PathLike[str] | Store = ":memory:", **options: Any) -> Store:
    """Open a store by its location, optionally with nearer tiers in front of it.

    Args:
        location: ``":memory:"``; a folder, created if missing; ``redis://``, ``rediss://``, ``valkey://`` or
            ``valkeys://``; another URL that obstore opens (``s3://``, ``gs://``, ``az://`` ...); or a store,
            which is returned as it is.
        memory_bytes: budget of the chunks kept in memory; 0 keeps none. The default is none in front of a folder,
            and 1 GiB in front of a URL without ``cache_folder``.
        disk_bytes: budget of the folder.
        cache_folder: a folder that caches the chunks of a URL, with ``disk_bytes`` as its budget.
        timeout_s: time limit of a request to a URL.
        storage_options: a dictionary for the client of a URL.

    Raises:
        ConfigurationError: an option is unknown, has no meaning here or is out of range; a package is missing.
        StoreFormatError: the folder contains other files.
    """
    if isinstance(location, Store):
        _require_known(type(location).__name__, options, ())
        return location
    name = fspath(location) if isinstance(location, (str, PathLike)) else None
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"store is {location!r}; it must be ':memory:', a folder's path or a URL")
    for option, low in (("memory_bytes", 0), ("disk_bytes", 1)):
        if options.get(option) is not None:
            require_integer(option, options[option], low)
    memory_bytes, disk_bytes = options.get("memory_bytes"), options.get("disk_bytes")
    if name == ":memory:":
        _require_known(name, options, ("memory_bytes",))
        return MemoryStore(memory_bytes)
    if "://" in name:
        _require_known(name, options, _REMOTE_OPTIONS)
        return _open_url(name, memory_bytes, disk_bytes, options)
    _require_known(name, options, ("memory_bytes", "disk_bytes"))
    return _behind_memory(memory_bytes, DiskStore(location, disk_bytes))


def _open_url(url: str, memory_bytes: int | None, disk_bytes: int | None, options: dict[str, Any]) -> Store:
    kind: type[RedisStore | ObjectStore] = RedisStore if url.partition("://")[0] in SCHEMES else ObjectStore
    if kind is ObjectStore and not url.partition("://")[2].strip("/."):
        raise ConfigurationError(f"store is {url!r}; the URL names no place")
    client = options.get("storage_options") or {}
    if not isinstance(client, dict) or not all(isinstance(name, str) for name in client):
        raise ConfigurationError(
            f"storage_options is of type {type(client).__name__}; it must be a dictionary of names and values"
        )
    if "timeout_s" in options:
        require_number("timeout_s", options["timeout_s"], 1e-3, _MAX_SECONDS)
        client = {**client, "timeout_s": options["timeout_s"]}
    cache_folder = options.get("cache_folder")
    if cache_folder is None:
        if disk_bytes is not None:
            raise ConfigurationError(f"disk_bytes is {disk_bytes!r}, but no cache_folder is given for it to bound")
        near_bytes = _MEMORY_BYTES_BEFORE_REMOTE if memory_bytes is None else memory_bytes
        return _behind_memory(near_bytes, kind(url, **client))
    near = DiskStore(as_folder("cache_folder", cache_folder), disk_bytes)
    return _behind_memory(memory_bytes, TieredStore(near, kind(url, **client)))


def _behind_memory(memory_bytes: int | None, far: Store) -> Store:
    return TieredStore(MemoryStore(memory_bytes), far) if memory_bytes else far


def _require_known(location: str, options: dict[str, Any], meant: tuple[str, ...]) -> None:
    refuse_unknown(options, _REMOTE_OPTIONS)
    if strange := sorted(set(options) - set(meant)):
        place = without_secrets(location)
        raise ConfigurationError(f"{', '.join(strange)} means nothing for a store at {place!r}; leave it out")
