"""Where chunk caches are kept: bytes by key, in memory, on disk, in an object store, in Redis, in tiers.

base.py          the contract: six methods
codec.py         a chunk cache as bytes, and back, layer by layer
quantization.py  keys and values in 8 bits
catalog.py       which texts are known, and which documents they came from
memory.py, disk.py, objects.py, redis.py, tiers.py
open.py          from a location to a store
admin.py         look at, check, prune, copy
testing.py       the contract as a test suite, for stores of your own
"""

from samkv_rag.store.base import Blob, BytesBlob, Store
from samkv_rag.store.open import open_store

__all__ = ["Blob", "BytesBlob", "Store", "open_store"]
