"""From a location and options to a store, or tiers of stores."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from typing import Any

from samkv_rag.checks import refuse_unknown
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.base import KVStore
from samkv_rag.store.disk.store import DiskStore
from samkv_rag.store.memory.store import MemoryStore
from samkv_rag.store.redis.store import SCHEMES, RedisStore
from samkv_rag.store.remote.store import RemoteStore
from samkv_rag.store.shared.options import require_budget, require_folder, require_storage_options
from samkv_rag.store.shared.reachability import redacted
from samkv_rag.store.tiers.store import TieredStore

MEMORY_BYTES_BEFORE_REMOTE = 1 << 30
_MEMORY_OPTIONS = ("memory_bytes",)
_DISK_OPTIONS = ("memory_bytes", "disk_bytes")
_SERVER_OPTIONS = (*_DISK_OPTIONS, "cache_folder", "timeout_s", "storage_options")
_REMOTE_OPTIONS = (*_SERVER_OPTIONS, "refresh_s")


def open_store(location: str | PathLike[str] | KVStore = ":memory:", **options: Any) -> KVStore:
    """Open a store by its location, with nearer tiers in front of it where asked for.

    ``location`` is ``":memory:"``; a folder, made where absent; a URL that fsspec understands (``s3://``,
    ``gs://``, ``file://`` ...); ``redis://``, ``rediss://``, ``valkey://`` or ``valkeys://``; or a store, which
    is returned as it is. Options, each where it means something:

    - ``memory_bytes``: budget of the chunks kept in memory. Before a folder there is none unless asked for;
      before a URL there is 1 GiB unless ``cache_folder`` is given; 0: none.
    - ``disk_bytes``: budget of the folder.
    - ``cache_folder``: a folder in which chunks of a URL are kept, with ``disk_bytes`` as its budget.
    - ``timeout_s``: the longest that one request to a URL may take.
    - ``refresh_s``: how old the list of chunks behind a URL may become; not for Redis, which is asked each time.
    - ``storage_options``: a dictionary for fsspec's file system, or for ``redis.Redis``.

    Raises:
        ConfigurationError: an option is unknown, means nothing here or is out of range; a package is missing.
        StoreFormatError: the place belongs to something else or to another format version.
        StoreUnreachableError: no answer from the URL.
    """
    if isinstance(location, KVStore):
        _require_known(type(location).__name__, options, ())
        return location
    name = _named(location)
    if name == ":memory:":
        _require_known(name, options, _MEMORY_OPTIONS)
        return MemoryStore(options.get("memory_bytes"))
    if "://" in name:
        return _open_url(name, **options)
    _require_known(name, options, _DISK_OPTIONS)
    return _open_folder(name, **options)


def _named(location: object) -> str:
    name = fspath(location) if isinstance(location, (str, PathLike)) else None
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"store is {location!r}; it must be ':memory:', a folder's path or a URL")
    return name


def _open_folder(folder: str, memory_bytes: int | None = None, disk_bytes: int | None = None) -> KVStore:
    require_folder("store", folder)
    return _behind_memory(memory_bytes, lambda: DiskStore(folder, disk_bytes))


def _open_url(
    url: str,
    memory_bytes: int | None = None,
    disk_bytes: int | None = None,
    cache_folder: str | PathLike[str] | None = None,
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> KVStore:
    is_server = url.partition("://")[0] in SCHEMES
    _require_known(url, options, _SERVER_OPTIONS if is_server else _REMOTE_OPTIONS)
    kind: Callable[..., KVStore] = RedisStore if is_server else RemoteStore

    client_options = require_storage_options(storage_options)

    def open_far() -> KVStore:
        return kind(url, **options, **client_options)

    if cache_folder is not None:
        folder = require_folder("cache_folder", cache_folder)
        return _behind_memory(memory_bytes, lambda: _tiers(lambda: DiskStore(folder, disk_bytes), open_far))
    if disk_bytes is not None:
        raise ConfigurationError(f"disk_bytes is {disk_bytes!r}, but no cache_folder is given for it to bound")
    return _behind_memory(MEMORY_BYTES_BEFORE_REMOTE if memory_bytes is None else memory_bytes, open_far)


def _behind_memory(memory_bytes: int | None, open_far: Callable[[], KVStore]) -> KVStore:
    """``open_far``'s store, behind one in memory where there is a budget for it."""
    if memory_bytes is None or (memory_bytes == 0 and memory_bytes is not False):
        return open_far()
    require_budget("memory_bytes", memory_bytes)
    return _tiers(lambda: MemoryStore(memory_bytes), open_far)


def _tiers(open_near: Callable[[], KVStore], open_far: Callable[[], KVStore]) -> KVStore:
    far = open_far()
    try:
        return TieredStore(open_near(), far)
    except BaseException:
        far.close()
        raise


def _require_known(location: object, options: dict[str, Any], meant: tuple[str, ...]) -> None:
    refuse_unknown(options, _REMOTE_OPTIONS)
    if strange := sorted(set(options) - set(meant)):
        place = redacted(str(location))
        raise ConfigurationError(f"{', '.join(strange)} means nothing for a store at {place!r}; leave it out")
