"""A small chunk cache that is the same everywhere; its encoded forms lie in ``tests/format``."""

from __future__ import annotations

from pathlib import Path

import torch

from samkv_rag.chunk_cache import ChunkCache, Layout, Means

FOLDER = Path(__file__).parent / "format"
FINGERPRINT = "0123456789abcdef" * 4
DIGEST = "fedcba9876543210" * 4
NUM_TOKENS = 70  # one whole group of 64 tokens and a part of one


def golden_cache(dtype: torch.dtype = torch.bfloat16) -> ChunkCache:
    """2 layers, 1 kv head, 70 tokens, head_dim 4; made by arithmetic alone."""
    summary = Means(_wave(dtype, 2, 1, 4, 4), _wave(dtype, 2, 1, 4), _wave(dtype, 2, 2, 4))
    keys, values = _wave(dtype, 2, 2, 1, NUM_TOKENS, 4)
    token_ids = torch.arange(NUM_TOKENS) * 3 + 1
    return ChunkCache(token_ids, keys, values, summary, Layout(4, 4, 16, 1), FINGERPRINT, _wave(dtype, NUM_TOKENS, 8))


def golden_bytes(name: str) -> bytes:
    """A file of ``tests/format``."""
    return (FOLDER / f"{name}.safetensors").read_bytes()


def _wave(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Multiples of 1/8 from -2 to 2, which every floating type holds."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return ((count * 7919 % 33 - 16).float() / 8).view(shape).to(dtype)
