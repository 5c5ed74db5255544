"""Chunk caches with random contents, and their entries."""

from __future__ import annotations

import torch

from samkv_rag.chunk_cache import ChunkCache, Layout, Means, chunk_key
from samkv_rag.prompt import describe
from samkv_rag.store import Entry

FINGERPRINT = "a" * 64


def make_cache(seed: int = 0, num_tokens: int = 7, fingerprint: str = FINGERPRINT) -> ChunkCache:
    torch.manual_seed(seed)
    keys, values = torch.randn(2, 3, 2, num_tokens, 8, dtype=torch.bfloat16)
    summary = Means(torch.randn(3, 2, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 4, 8))
    return ChunkCache(
        torch.arange(num_tokens), keys, values, summary, Layout(4, 4, 8, 1), fingerprint, torch.randn(num_tokens, 16)
    )


def make_entry(text: str, fingerprint: str = FINGERPRINT) -> Entry:
    known = describe(text)
    key = chunk_key(fingerprint, known.text_digest)
    return Entry(key, known.text_digest, known.prefix, known.suffix, known.num_chars, 7, Layout(4, 4, 8, 1))
