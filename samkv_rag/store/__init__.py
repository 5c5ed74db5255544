"""Where chunk caches live: ``open_store(":memory:")``, ``open_store(folder)`` or ``open_store(url)``.

    opening.py      from a location and options to a store, or tiers of stores
    base.py         the contract of a store, and what it is given: an entry, an encoded chunk
    namespaces.py   tenants kept apart by their fingerprints
    units.py        amounts as people write them: 10GB, 30d
    memory/         in this process
    disk/           a folder: one file a chunk, and an SQLite index of them
    remote/         behind a URL: one object a chunk, and an index that machines share without a lock
    redis/          in a Redis or Valkey server
    tiers/          a near store in front of a far one: fetched once, written back, read ahead
    management/     a disk store looked at, checked, pruned, exported
    format/         a chunk as bytes: written, read layer by layer, quantised, checked
    shared/         what several stores are made of: checked options, private files, threads, outages

Imports go up: ``format``, then ``base``, ``shared``, the four stores, ``tiers``, and last ``opening`` and
``management``. Outside this package the names below are enough, save for ``management`` and the units.
"""

from __future__ import annotations

from samkv_rag.store.base import Entry, KVStore, Origin
from samkv_rag.store.disk.store import DiskStore
from samkv_rag.store.memory.store import MemoryStore
from samkv_rag.store.opening import open_store
from samkv_rag.store.redis.store import RedisStore
from samkv_rag.store.remote.store import RemoteStore
from samkv_rag.store.tiers.store import TieredStore

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
