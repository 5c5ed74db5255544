"""From a prompt to a KV cache to decode from: one contract, one method a file."""

from samkv_rag.prefill.base import CachedPrefill, Clock, PrefillContext, Prefilled, PrefillMethod
from samkv_rag.prefill.cacheblend import CacheBlend
from samkv_rag.prefill.epic import Epic
from samkv_rag.prefill.full_prefill import FullPrefill
from samkv_rag.prefill.naive_reuse import NaiveReuse
from samkv_rag.prefill.prophetkv import ProphetKV
from samkv_rag.prefill.registry import method_classes, resolve_method
from samkv_rag.prefill.samkv import SamKV
from samkv_rag.prefill.scout import Scout
from samkv_rag.prefill.sparse import Selected, SparsePrefill

__all__ = [
    "CacheBlend",
    "CachedPrefill",
    "Clock",
    "Epic",
    "FullPrefill",
    "NaiveReuse",
    "PrefillContext",
    "PrefillMethod",
    "Prefilled",
    "ProphetKV",
    "SamKV",
    "Scout",
    "Selected",
    "SparsePrefill",
    "method_classes",
    "resolve_method",
]
