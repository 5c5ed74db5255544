"""Selection: which chunk tokens stay, within a hard budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch

from samkv_rag.chunk_cache import Layout
from samkv_rag.metrics import ScoredBlock
from samkv_rag.sparse.layout import PromptLayout


@dataclass(frozen=True)
class Budget:
    """How many chunk tokens may stay, and how many of each chunk's ends are certain to."""

    num_tokens: int
    initial_tokens: int
    local_tokens: int


def plan_budget(layout: PromptLayout, sequence_ratio: float, anchors: Layout) -> Budget:
    """Token budget for ``sequence_ratio``, with anchors shrunk until they take half of it at most."""
    num_tokens = int(sequence_ratio * layout.num_chunk_tokens + 1e-6)
    budget = Budget(num_tokens, anchors.initial_tokens, anchors.local_tokens)
    while _num_anchors(layout, budget) > num_tokens / 2:
        budget = replace(
            budget, initial_tokens=max(0, budget.initial_tokens - 1), local_tokens=max(0, budget.local_tokens - 1)
        )
    return budget


def _num_anchors(layout: PromptLayout, budget: Budget) -> int:
    """Tokens in :func:`anchor_mask`, counted without looking at the device."""
    anchors = budget.initial_tokens + budget.local_tokens
    return sum(min(segment.stop - segment.start, anchors) for segment in layout.chunks)


def anchor_mask(layout: PromptLayout, budget: Budget | Layout) -> torch.Tensor:
    """Positions of every chunk's initial and local tokens, ``[tokens]``."""
    from_end = layout.chunk_lengths[layout.chunk_number] - layout.index_in_chunk
    anchors = (layout.index_in_chunk < budget.initial_tokens) | (from_end <= budget.local_tokens)
    return anchors & layout.is_chunk


class Blocks:
    """The chunks' middles cut into blocks, numbered over the whole prompt."""

    def __init__(self, layout: PromptLayout, initial_tokens: int, local_tokens: int, block_tokens: int) -> None:
        lengths = (layout.chunk_lengths - initial_tokens - local_tokens).clamp(min=0)
        self.per_chunk = (lengths + block_tokens - 1) // block_tokens
        first_block = self.per_chunk.cumsum(0) - self.per_chunk
        middle = layout.is_chunk & ~anchor_mask(layout, Budget(0, initial_tokens, local_tokens))
        self.positions = middle.nonzero()[:, 0]
        index = layout.index_in_chunk[self.positions] - initial_tokens
        self.of_token = first_block[layout.chunk_number[self.positions]] + index // block_tokens
        self._slot = index % block_tokens
        self._width = block_tokens
        self._num_tokens = layout.num_tokens
        self.num_blocks = int(self.per_chunk.sum())

    def top_token_mean(self, token_scores: torch.Tensor, top_tokens: int) -> torch.Tensor:
        """Mean of each block's ``top_tokens`` highest scores, ``[blocks]``."""
        table = token_scores.new_zeros(self.num_blocks, self._width)
        table[self.of_token, self._slot] = token_scores[self.positions]
        return table.topk(min(top_tokens, self._width), dim=1).values.mean(dim=1)

    def best_within(self, scores: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Positions of the highest-scoring blocks, ``num_tokens`` at most, as a ``[tokens]`` mask.

        The last block taken is cut where the budget ends. Blocks with a score of -inf are never taken.
        """
        rank = scores.argsort(descending=True, stable=True).argsort()
        eligible = (scores > -torch.inf)[self.of_token].nonzero()[:, 0]
        best = rank[self.of_token[eligible]].argsort(stable=True)[:num_tokens]
        mask = torch.zeros(self._num_tokens, dtype=torch.bool, device=scores.device)
        mask[self.positions[eligible[best]]] = True
        return mask

    def scored(self, scores: torch.Tensor, layout: PromptLayout) -> list[tuple[ScoredBlock, ...]]:
        """The blocks of each chunk with their ``scores`` ``[blocks]``, on the host, within their chunk."""
        num_tokens = self.of_token.bincount(minlength=self.num_blocks)
        first = self.positions[num_tokens.cumsum(0) - num_tokens]
        starts = layout.index_in_chunk[first]
        columns = (starts.tolist(), (starts + num_tokens).tolist(), scores.tolist())
        blocks = [ScoredBlock(start, stop, score) for start, stop, score in zip(*columns, strict=True)]
        bounds = [0, *self.per_chunk.cumsum(0).tolist()]
        return [tuple(blocks[first:last]) for first, last in pairwise(bounds)]


class BlockScores(NamedTuple):
    """What a selection gave its blocks; stays on the device until an answer is there."""

    blocks: Blocks
    scores: torch.Tensor
    """``[blocks]``"""


def dynamic_share(block_scores: torch.Tensor, anchor_score: torch.Tensor) -> torch.Tensor:
    """Share of a chunk's blocks to keep, from how they compare with its anchors.

    P = (max s − a) / (max s − min s) where min s < a ≤ max s, else 0 (SamKV, arXiv 2508.11661).
    ``block_scores`` is ``[layers, blocks]``, ``anchor_score`` ``[layers]``; averaged over layers.
    """
    high, low = block_scores.amax(dim=1), block_scores.amin(dim=1)
    inside = (low < anchor_score) & (anchor_score <= high)
    share = (high - anchor_score) / (high - low).clamp(min=1e-12)
    return torch.where(inside, share, 0.0).mean()
