"""ProphetKV (arXiv 2602.02579): all cached KV retained, the tokens that the question attends to recomputed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.prefill.base import PrefillContext, Prefilled, RecomputingPrefill
from samkv_rag.prefill.passes.recomputation import recompute
from samkv_rag.prefill.passes.selection import best_tokens
from samkv_rag.prefill.scout import Scout

_SCAN = Scout(score_layers=(0.0, 1.0), emphasis_tokens=0)
"""Scouting over all layers, with all tokens of the question weighted equally."""


@dataclass(frozen=True)
class ProphetKV(RecomputingPrefill):
    """Recomputes the chunk tokens that the question attends to most.

    Source: ProphetKV's two stages, rebuilt from the paper's abstract and summaries of it. First the prompt's text
    runs over all cached KV; a token's score is the attention that it gets from the question, averaged over layers
    and heads. Then the best-scored tokens and the text run through all layers, see everything before them, and
    overwrite the cache. As in :class:`Scout`, the last 64 tokens of a long question score.
    """

    name: ClassVar[str] = "prophetkv"

    def prefill(self, context: PrefillContext) -> Prefilled:
        with context.clock.phase("select"):
            scores, _ = _SCAN.score_tokens(context.decoder, context.layout)
            recomputed = best_tokens(scores, context.layout, self.recompute_ratio)
        return recompute(context, torch.ones_like(recomputed), recomputed)
