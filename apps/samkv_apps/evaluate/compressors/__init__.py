"""Prompt compressors by name; each is built once per run, on first use."""

from __future__ import annotations

from collections.abc import Callable

from samkv_apps.evaluate.compressors.base import Compressor
from samkv_apps.evaluate.compressors.fewer_chunks import FewerChunks
from samkv_apps.evaluate.compressors.llmlingua import LLMLingua
from samkv_rag.engine import SamKVEngine

COMPRESSORS: dict[str, Callable[[SamKVEngine], Compressor]] = {
    FewerChunks.name: FewerChunks,
    LLMLingua.name: LLMLingua,
}

__all__ = ["COMPRESSORS", "Compressor", "FewerChunks", "LLMLingua"]
