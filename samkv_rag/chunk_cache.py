"""What is stored of a chunk, and the one interface through which a pass reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch

SCORE_LAYERS = (0.5, 0.83)
"""Share of the depth, from and to, whose keys tell which tokens a question needs."""
_ANCHOR_SHARE = 0.1
_FIRST_ANCHORS = 4
"""A chunk's first tokens name what it is about, and are read in any case."""


def score_layers(num_layers: int, share: tuple[float, float] = SCORE_LAYERS) -> range:
    """The layers between two shares of the depth, one at least."""
    first = int(share[0] * num_layers)
    return range(first, max(first + 1, round(share[1] * num_layers)))


def ranking_layer(num_layers: int) -> int:
    """The layer whose values tell how well a chunk matches a question."""
    return num_layers // 4


def index_anchors(num_tokens: int) -> torch.Tensor:
    """Tokens of a chunk over which a question is scouted, ``[anchors]``: the first ones, then evenly spread, a tenth.

    Source: QCFuse (arXiv 2606.05875), which chooses a tenth without the question. Spread evenly they select as well
    as those that receive most attention, see ``docs/method.md``.
    """
    num_first = min(_FIRST_ANCHORS, num_tokens)
    num_spread = max(0, round(_ANCHOR_SHARE * num_tokens) - num_first)
    spread = torch.linspace(num_first, num_tokens - 1, num_spread).round().to(torch.int64)
    return torch.cat((torch.arange(num_first), spread))


@dataclass(frozen=True)
class SummarySpec:
    """What is computed of a chunk at ingestion; all in tokens."""

    initial_tokens: int
    local_tokens: int
    block_tokens: int
    storage: str = "full"

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
    """Summary of a chunk (arXiv 2508.11661, section 3), keys and queries after RoPE where they were computed."""

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

    def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each ``[kv_heads, tokens, head_dim]``, where they were computed.

        With ``tokens`` ``[n]``, rising, of these alone: the rest is not read. An index holds its anchors only.
        """

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        """Write what :meth:`layer` returns into ``keys`` and ``values``, on the host and of any strides.

        Without ``values`` keys alone are read, which an index has of the scoring layers.
        """

    def layer_values(self, layer: int) -> torch.Tensor:
        """Values alone, ``[kv_heads, tokens, head_dim]``; an index has those of the ranking layer."""

    def summary(self) -> Summary:
        """What the paper's selection works on."""


@dataclass(frozen=True)
class ChunkCache:
    """A chunk's keys and values, computed right behind the preamble, and their summary; other text has none."""

    token_ids: torch.Tensor
    """``[tokens]``, int64"""
    keys: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``, after RoPE"""
    values: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``"""
    means: Summary | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return int(self.token_ids.shape[0])

    def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.keys[layer], self.values[layer]
        return (keys, values) if tokens is None else (keys[:, tokens], values[:, tokens])

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        keys.copy_(self.keys[layer])
        if values is not None:
            values.copy_(self.values[layer])

    def layer_values(self, layer: int) -> torch.Tensor:
        return self.values[layer]

    def summary(self) -> Summary:
        assert self.means is not None
        return self.means


def chunk_key(fingerprint: str, digest: str) -> str:
    """Store key of a chunk: a hash of who computed it and of its text's digest, never a path."""
    return hashlib.sha256(f"{fingerprint}\n{digest}".encode()).hexdigest()
