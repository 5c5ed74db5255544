"""EPIC (arXiv 2410.15332): all cached KV retained, the first tokens of every chunk recomputed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.prefill.base import PrefillContext, Prefilled, RecomputingPrefill
from samkv_rag.prefill.passes.recomputation import recompute
from samkv_rag.prompt.layout import PromptLayout


@dataclass(frozen=True)
class Epic(RecomputingPrefill):
    """LegoLink: recomputes a chunk's first tokens, which draw attention like a prompt's beginning.

    Source: EPIC, section 4 (called AttnLink in its first version). The first k tokens of every chunk run through
    all layers and see everything before them. As in the paper, a chunk that begins the prompt and was computed without
    a preamble is left out, because it is exact. The paper fixes k (2 to 32 tokens); here k is the largest that the
    ratio allows, so that methods can be compared at one cost.
    """

    name: ClassVar[str] = "epic"

    def prefill(self, context: PrefillContext) -> Prefilled:
        recomputed = chunk_beginnings(context.layout, self.recompute_ratio)
        return recompute(context, torch.ones_like(recomputed), recomputed)


def chunk_beginnings(layout: PromptLayout, recompute_ratio: float) -> torch.Tensor:
    """Return the first k tokens of every chunk whose KV is not exact, ``[tokens]``, with the largest possible k.

    ``recompute_ratio`` of all chunk tokens is a hard cap; chunks shorter than k are taken whole.
    """
    num_tokens = int(recompute_ratio * layout.num_chunk_tokens + 1e-6)
    is_exact = [segment.start == segment.computed_at == 0 for segment in layout.chunks]
    inexact = ~torch.tensor(is_exact, device=layout.device)
    lengths = layout.chunk_lengths[inexact]
    candidates = torch.arange(int(layout.chunk_lengths.max()) + 1, device=layout.device)
    totals = torch.minimum(candidates[:, None], lengths[None]).sum(dim=1)
    k = (totals <= num_tokens).sum() - 1  # totals rise from 0
    return layout.is_chunk & (layout.index_in_chunk < k) & inexact[layout.chunk_number]
