"""Stores of chunk caches: bytes by key, in memory, on disk, in an object store, in Redis, in tiers.

base.py          the contract: six methods
codec.py         a chunk cache to bytes and back, layer by layer
quantization.py  keys and values in 8 bits
catalog.py       the known texts, and the documents they came from
memory.py, disk.py, objects.py, redis.py, tiers.py
open.py          opens a store by its location
testing.py       a test suite of the contract, for your own stores
"""

from samkv_rag.store.base import Blob, BytesBlob, Store
from samkv_rag.store.open import open_store

__all__ = ["Blob", "BytesBlob", "Store", "open_store"]
