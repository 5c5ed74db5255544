"""The cache of a chunk, and the interface through which a pass reads it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch

SCORE_LAYERS = (0.5, 0.83)
"""Layers whose keys tell which tokens a question needs: from and to, as shares of the depth."""
_ANCHOR_SHARE = 0.1
_FIRST_ANCHORS = 4
"""A chunk's first tokens name its subject and are always read."""


def score_layers(num_layers: int, share: tuple[float, float] = SCORE_LAYERS) -> range:
    """Return the layers between two shares of the depth, at least one."""
    first = int(share[0] * num_layers)
    return range(first, max(first + 1, round(share[1] * num_layers)))


def ranking_layer(num_layers: int) -> int:
    """Return the layer whose values tell how well a chunk matches a question."""
    return num_layers // 4


def index_anchors(num_tokens: int) -> torch.Tensor:
    """Return the tokens of a chunk that scouting reads, ``[anchors]``: a tenth, the first ones and then evenly spread.

    Source: QCFuse (arXiv 2606.05875), which chooses a tenth without the question. Evenly spread tokens select as well
    as those that receive most attention; see ``docs/method.md``.
    """
    num_first = min(_FIRST_ANCHORS, num_tokens)
    num_spread = max(0, round(_ANCHOR_SHARE * num_tokens) - num_first)
    spread = torch.linspace(num_first, num_tokens - 1, num_spread).round().to(torch.int64)
    return torch.cat((torch.arange(num_first), spread))


@dataclass(frozen=True)
class SummarySpec:
    """The layout of a chunk's summary, in tokens, and its storage."""

    initial_tokens: int
    local_tokens: int
    block_tokens: int
    storage: str = "full"

    def middle(self, num_tokens: int) -> tuple[int, int]:
        """Return the token range between the anchors; empty if the anchors cover the chunk."""
        first = min(self.initial_tokens, num_tokens)
        return first, max(first, num_tokens - self.local_tokens)

    def num_blocks(self, num_tokens: int) -> int:
        """Count the blocks between the anchors; the last may be shorter."""
        first, last = self.middle(num_tokens)
        return -(-(last - first) // self.block_tokens)


@dataclass(frozen=True)
class ChunkShape:
    """The shape that a model expects of its chunks."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    dtype: torch.dtype
    spec: SummarySpec


@dataclass(frozen=True)
class Summary:
    """Summary of a chunk (arXiv 2508.11661, section 3); keys and queries are after RoPE at their computed positions."""

    block_mean_keys: torch.Tensor
    """``[layers, kv_heads, blocks, head_dim]``"""
    anchor_mean_key: torch.Tensor
    """``[layers, kv_heads, head_dim]``, over initial and local tokens"""
    local_mean_query: torch.Tensor
    """``[layers, heads, head_dim]``, over the local tokens"""


class ChunkReader(Protocol):
    """Reads a chunk piece by piece. The caller owns the tensors, on any device.

    Reading raises ``DamagedChunkError`` if the chunk was cut short or replaced meanwhile.
    """

    @property
    def token_ids(self) -> torch.Tensor:
        """``[tokens]``, int64."""

    @property
    def has_all_kv(self) -> bool:
        """Whether the KV of any token can be read, without a request to a remote store."""

    def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of one layer, each ``[kv_heads, tokens, head_dim]``, at their computed positions.

        With ``tokens`` ``[n]``, ascending, only these are read. An index has its anchors only.
        """

    def rows(self, layers: range, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of ``tokens`` ``[n]``, ascending, each ``[layers, kv_heads, n, head_dim]``.

        They are read at once. An index has none.
        """

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        """Write the result of :meth:`layer` into ``keys`` and ``values``, on the host, of any strides.

        Without ``values`` only keys are read; an index has those of the scoring layers.
        """

    def layer_values(self, layer: int) -> torch.Tensor:
        """Return the values, ``[kv_heads, tokens, head_dim]``; an index has those of the ranking layer."""

    def summary(self) -> Summary:
        """Return the summary, by which the paper's method selects."""


@dataclass(frozen=True)
class ChunkCache:
    """A chunk's keys and values, computed right after the preamble, and their summary; other text has none."""

    token_ids: torch.Tensor
    """``[tokens]``, int64"""
    keys: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``, after RoPE"""
    values: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``"""
    means: Summary | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def has_all_kv(self) -> bool:
        return True

    def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.keys[layer], self.values[layer]
        return (keys, values) if tokens is None else (keys[:, tokens], values[:, tokens])

    def rows(self, layers: range, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of = slice(layers.start, layers.stop)
        return self.keys[of, :, tokens], self.values[of, :, tokens]

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
    """Return the store key of a chunk: a hash of its owner's fingerprint and its text's digest."""
    return hashlib.sha256(f"{fingerprint}\n{digest}".encode()).hexdigest()
