"""Selection: which chunk tokens are retained, within a hard budget."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch

from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.results import ScoredBlock


class Anchors(NamedTuple):
    """How many of a chunk's first and last tokens are always retained."""

    initial_tokens: int
    local_tokens: int


@dataclass(frozen=True)
class Budget:
    """How many chunk tokens may be retained, anchors included."""

    num_tokens: int
    anchors: Anchors


def plan_budget(layout: PromptLayout, sequence_ratio: float, anchors: Anchors) -> Budget:
    """Return the token budget for ``sequence_ratio``, with anchors shrunk to at most half of it."""
    num_tokens = int(sequence_ratio * layout.num_chunk_tokens + 1e-6)
    lengths = [chunk.num_tokens for chunk in layout.chunks]  # on the host
    anchors = Anchors(*(min(number, max(lengths, default=0)) for number in anchors))
    while sum(min(length, sum(anchors)) for length in lengths) > num_tokens / 2:
        anchors = Anchors(max(0, anchors.initial_tokens - 1), max(0, anchors.local_tokens - 1))
    return Budget(num_tokens, anchors)


def anchor_mask(layout: PromptLayout, anchors: Anchors) -> torch.Tensor:
    """Return a ``[tokens]`` mask of every chunk's initial and local tokens."""
    from_end = layout.chunk_lengths[layout.chunk_number] - layout.index_in_chunk
    mask = (layout.index_in_chunk < anchors.initial_tokens) | (from_end <= anchors.local_tokens)
    return mask & layout.is_chunk


def best_tokens(scores: torch.Tensor, layout: PromptLayout, ratio: float) -> torch.Tensor:
    """Return a ``[tokens]`` mask of the chunk tokens with the highest ``scores``, at most ``ratio`` of them."""
    num_tokens = int(ratio * layout.num_chunk_tokens + 1e-6)
    positions = layout.is_chunk.nonzero()[:, 0]
    mask = torch.zeros_like(layout.is_chunk)
    mask[positions[scores[positions].topk(num_tokens).indices]] = True
    return mask


class Blocks:
    """The chunks' middles cut into blocks, numbered over the whole prompt."""

    def __init__(self, layout: PromptLayout, anchors: Anchors, block_tokens: int) -> None:
        # A block longer than every chunk is the same as one as long as the longest.
        block_tokens = min(block_tokens, max((chunk.num_tokens for chunk in layout.chunks), default=1))
        lengths = (layout.chunk_lengths - sum(anchors)).clamp(min=0)
        self.per_chunk = (lengths + block_tokens - 1) // block_tokens
        first_block = self.per_chunk.cumsum(0) - self.per_chunk
        middle = layout.is_chunk & ~anchor_mask(layout, anchors)
        self.positions = middle.nonzero()[:, 0]
        index = layout.index_in_chunk[self.positions] - anchors.initial_tokens
        self.of_token = first_block[layout.chunk_number[self.positions]] + index // block_tokens
        self._slot = index % block_tokens
        self._width = block_tokens
        self._num_tokens = layout.num_tokens
        self.num_blocks = int(self.per_chunk.sum())

    def top_token_mean(self, token_scores: torch.Tensor, top_tokens: int) -> torch.Tensor:
        """Return the mean of each block's ``top_tokens`` highest scores, ``[blocks]``."""
        table = token_scores.new_zeros(self.num_blocks, self._width)
        table[self.of_token, self._slot] = token_scores[self.positions]
        return table.topk(min(top_tokens, self._width), dim=1).values.mean(dim=1)

    def best_within(self, scores: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Return a ``[tokens]`` mask of the highest-scoring blocks, ``num_tokens`` at most.

        The last block is cut where the budget ends. Blocks with a score of -inf are never taken.
        """
        rank = scores.argsort(descending=True, stable=True).argsort()
        eligible = (scores > -torch.inf)[self.of_token].nonzero()[:, 0]
        best = rank[self.of_token[eligible]].argsort(stable=True)[:num_tokens]
        mask = torch.zeros(self._num_tokens, dtype=torch.bool, device=scores.device)
        mask[self.positions[eligible[best]]] = True
        return mask

    def scored(self, scores: torch.Tensor, layout: PromptLayout) -> list[tuple[ScoredBlock, ...]]:
        """Return each chunk's blocks with their ``scores`` ``[blocks]``, on the host."""
        num_tokens = self.of_token.bincount(minlength=self.num_blocks)
        starts = layout.index_in_chunk[self.positions[num_tokens.cumsum(0) - num_tokens]]
        blocks = map(ScoredBlock, starts.tolist(), (starts + num_tokens).tolist(), scores.tolist())
        return [tuple(islice(blocks, num_blocks)) for num_blocks in self.per_chunk.tolist()]


class BlockScores(NamedTuple):
    """Blocks and the scores that selected them; they stay on the device until the answer is finished."""

    blocks: Blocks
    scores: torch.Tensor
    """``[blocks]``"""
