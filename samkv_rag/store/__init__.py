"""Where chunk caches live: ``open_store(":memory:")``, ``open_store(folder)`` or ``open_store(url)``."""

from __future__ import annotations

from samkv_rag.store.base import Entry, KVStore, Origin
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.memory import MemoryStore
from samkv_rag.store.opening import open_store
from samkv_rag.store.redis import RedisStore
from samkv_rag.store.remote import RemoteStore
from samkv_rag.store.tiered import TieredStore

__all__ = [
    "DiskStore",
    "Entry",
    "KVStore",
    "MemoryStore",
    "Origin",
    "RedisStore",
    "RemoteStore",
    "TieredStore",
    "open_store",
]
