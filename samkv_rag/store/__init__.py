"""Where chunk caches live: ``open_store(":memory:")`` or ``open_store(folder)``."""

from __future__ import annotations

from os import PathLike, fspath

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.base import Entry, KVStore
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.memory import MemoryStore

__all__ = ["DiskStore", "Entry", "KVStore", "MemoryStore", "open_store"]


def open_store(location: str | PathLike[str] | KVStore = ":memory:") -> KVStore:
    """Open a store: ``":memory:"``, a folder (made where absent), or a store, returned as it is.

    Raises:
        ConfigurationError: the location is empty or a URL, which no store here reads.
        StoreFormatError: the folder belongs to something else or to another format version.
    """
    if isinstance(location, KVStore):
        return location
    name = fspath(location)
    if name == ":memory:":
        return MemoryStore()
    if not name or "://" in name:
        raise ConfigurationError(f"store is {name!r}; it must be ':memory:' or a folder's path")
    return DiskStore(name)
