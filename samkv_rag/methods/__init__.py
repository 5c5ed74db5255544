"""From a prompt to a KV cache to decode from: one contract, one clock, one decoding for all methods."""

from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.methods.full_prefill import FullPrefill
from samkv_rag.methods.naive_reuse import NaiveReuse
from samkv_rag.methods.samkv import SamKV

METHODS: dict[str, PrefillMethod] = {method.name: method for method in (SamKV(), FullPrefill(), NaiveReuse())}

__all__ = ["METHODS", "Clock", "FullPrefill", "NaiveReuse", "PrefillMethod", "Prefilled", "SamKV"]
