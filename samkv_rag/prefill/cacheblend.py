"""CacheBlend (arXiv 2405.16444, EuroSys 2025): all cached KV retained, the tokens that deviate most recomputed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.model.decoder import CausalPass
from samkv_rag.prefill.base import PrefillContext, Prefilled, RecomputingPrefill
from samkv_rag.prefill.passes.plan import make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader, PlannedPass
from samkv_rag.prefill.passes.selection import best_tokens

CHECK_LAYER = 1
"""Layer 0 cannot deviate: its keys and values depend only on the token and its position."""


@dataclass(frozen=True)
class CacheBlend(RecomputingPrefill):
    """Recomputes the chunk tokens whose cached KV is most wrong.

    Source: CacheBlend, sections 4 and 5. All tokens run through layer 0 and are projected to keys and values
    at layer 1, the check layer. The tokens whose fresh KV is furthest from the cached run on through the layers
    above, see everything before them, and overwrite the cache. The paper filters a little at every layer; the
    single check layer is what its authors' LMCache uses. The lower two layers retain their fresh KV, which is exact.
    """

    name: ClassVar[str] = "cacheblend"

    def prefill(self, context: PrefillContext) -> Prefilled:
        decoder, layout, buffer = context.decoder, context.layout, context.buffer
        everything = torch.ones_like(layout.is_chunk)
        with context.clock.phase("select"):
            positions = torch.arange(layout.num_tokens)
            below = CausalPass(buffer, positions)
            hidden = decoder.run_layers(decoder.embed(layout.token_ids[None]), positions, below, range(CHECK_LAYER))
            fresh = decoder.project(hidden, positions, CHECK_LAYER)
            cached = LayerReader(decoder, make_plan(layout, everything), [CHECK_LAYER])(CHECK_LAYER)
            deviations = [(a.float() - b.float()).square().sum((0, 1, 3)) for a, b in zip(fresh, cached, strict=True)]
            recomputed = best_tokens(torch.stack(deviations).sum(0), layout, self.recompute_ratio)
        with context.clock.phase("recompute"):
            plan = make_plan(layout, everything, recomputed, view="all")
            layers = range(CHECK_LAYER, decoder.num_layers)
            attend = PlannedPass(decoder, plan, buffer, layers=layers, fresh={CHECK_LAYER: fresh})
            hidden = decoder.run_layers(hidden[:, plan.row_positions], plan.row_positions, attend, layers)
        return Prefilled(hidden[:, -1:], everything, recomputed)
