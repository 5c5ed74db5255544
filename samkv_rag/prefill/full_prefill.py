"""Full prefill: every token of the prompt runs through the model. The reference for all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.model.decoder import CausalPass
from samkv_rag.prefill.base import Need, PrefillContext, Prefilled, PrefillMethod


@dataclass(frozen=True)
class FullPrefill(PrefillMethod):
    """Computes the whole prompt, as a model does without samkv_rag; uses no cache."""

    name: ClassVar[str] = "full_prefill"

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def prefill(self, context: PrefillContext) -> Prefilled:
        decoder, layout = context.decoder, context.layout
        with context.clock.phase("prefill"):
            position_ids = torch.arange(layout.num_tokens)
            attend = CausalPass(context.buffer, position_ids)
            hidden = decoder.run_layers(decoder.embed(layout.token_ids[None]), position_ids, attend)
        return Prefilled(hidden[:, -1:], retained=torch.ones_like(layout.is_chunk), recomputed=layout.is_chunk)
