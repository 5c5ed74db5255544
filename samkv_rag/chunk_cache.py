"""What is stored of a chunk, and the one interface through which a pass reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class SummarySpec:
    """What is computed of a chunk at ingestion; all in tokens."""

    initial_tokens: int
    local_tokens: int
    block_tokens: int

    def middle(self, num_tokens: int) -> tuple[int, int]:
        """Token range between the anchors; empty where the anchors cover the chunk."""
        first = min(self.initial_tokens, num_tokens)
        return first, max(first, num_tokens - self.local_tokens)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks between the anchors; the last may be shorter."""
        first, last = self.middle(num_tokens)
        return -(-(last - first) // self.block_tokens)


@dataclass(frozen=True)
class ChunkShape:
    """What a model expects of its chunks."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    dtype: torch.dtype
    spec: SummarySpec


@dataclass(frozen=True)
class Summary:
    """Summary of a chunk (arXiv 2508.11661, section 3), keys and queries after RoPE at 0..tokens-1."""

    block_mean_keys: torch.Tensor
    """``[layers, kv_heads, blocks, head_dim]``"""
    anchor_mean_key: torch.Tensor
    """``[layers, kv_heads, head_dim]``, over initial and local tokens"""
    local_mean_query: torch.Tensor
    """``[layers, heads, head_dim]``, over the local tokens"""


class ChunkReader(Protocol):
    """Reads a chunk piece by piece. Tensors are the caller's own, on any device.

    Reading may raise ``DamagedChunkError`` where the chunk was cut short or replaced meanwhile.
    """

    @property
    def token_ids(self) -> torch.Tensor:
        """``[tokens]``, int64."""

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each ``[kv_heads, tokens, head_dim]``, at positions 0..tokens-1."""

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write what :meth:`layer` returns into ``keys`` and ``values``, on the host and of any strides."""

    def summary(self) -> Summary:
        """What the paper's selection works on."""


@dataclass(frozen=True)
class ChunkCache:
    """A chunk's keys and values, computed alone at positions 0..tokens-1, and their summary."""

    token_ids: torch.Tensor
    """``[tokens]``, int64"""
    keys: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``, after RoPE"""
    values: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``"""
    means: Summary

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return int(self.token_ids.shape[0])

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys[layer], self.values[layer]

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        keys.copy_(self.keys[layer])
        values.copy_(self.values[layer])

    def summary(self) -> Summary:
        return self.means


def chunk_key(fingerprint: str, digest: str) -> str:
    """Store key of a chunk: a hash of who computed it and of its text's digest, never a path."""
    return hashlib.sha256(f"{fingerprint}\n{digest}".encode()).hexdigest()
