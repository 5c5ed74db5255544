"""From a prompt to a KV cache to decode from: one contract, one clock, one decoding for all methods."""

from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.methods.cacheblend import CacheBlend
from samkv_rag.methods.epic import Epic
from samkv_rag.methods.full_prefill import FullPrefill
from samkv_rag.methods.naive_reuse import NaiveReuse
from samkv_rag.methods.samkv import SamKV
from samkv_rag.methods.scout import Scout

_ALL = (Scout(), SamKV(), FullPrefill(), NaiveReuse(), CacheBlend(), Epic())
METHODS: dict[str, PrefillMethod] = {method.name: method for method in _ALL}

__all__ = [
    "METHODS",
    "CacheBlend",
    "Clock",
    "Epic",
    "FullPrefill",
    "NaiveReuse",
    "PrefillMethod",
    "Prefilled",
    "SamKV",
    "Scout",
]
