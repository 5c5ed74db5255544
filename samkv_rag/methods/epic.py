"""EPIC (arXiv 2410.15332): all cached KV kept, the first tokens of every chunk recomputed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.forward import PlannedPass
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.plan import make_plan


class Epic(PrefillMethod):
    """LegoLink: a chunk's first tokens, computed alone, draw attention as a prompt's beginning does.

    Source: EPIC, section 4 (called AttnLink in its first version). The first k tokens of every chunk
    run through all layers and see everything before them. A chunk that begins the prompt is exact and
    left out, as in the paper. The paper fixes k (2 to 32 tokens); here it is the largest for which
    ``config.sequence_ratio`` of the chunk tokens are recomputed at most, so that all methods spend alike.
    """

    name: ClassVar[str] = "epic"

    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """See :class:`PrefillMethod`."""
        recomputed, everything = chunk_beginnings(layout, config.sequence_ratio), torch.ones_like(layout.is_chunk)
        with clock.phase("recompute"):
            # Everything stays, so the kept columns need no copy of their own.
            plan = replace(make_plan(layout, everything, recomputed, view="all"), kept_columns=None)
            hidden = decoder.embed(layout.token_ids[plan.row_positions][None])
            hidden = decoder.run_layers(hidden, plan.row_positions, PlannedPass(decoder, plan, buffer))
        return Prefilled(hidden[:, -1:], everything, recomputed)


def chunk_beginnings(layout: PromptLayout, sequence_ratio: float) -> torch.Tensor:
    """First k tokens of every chunk but one that begins the prompt, ``[tokens]``, k as large as may be.

    ``sequence_ratio`` of all chunk tokens is a hard cap; chunks shorter than k are taken whole.
    """
    num_tokens = int(sequence_ratio * layout.num_chunk_tokens + 1e-6)
    starts = torch.tensor([segment.start for segment in layout.chunks], device=layout.device)
    lengths = layout.chunk_lengths[starts > 0]
    candidates = torch.arange(int(layout.chunk_lengths.max()) + 1, device=layout.device)
    totals = torch.minimum(candidates[:, None], lengths[None]).sum(dim=1)
    k = (totals <= num_tokens).sum() - 1  # the first total is 0, and they never fall
    return layout.is_chunk & (layout.index_in_chunk < k) & (starts > 0)[layout.chunk_number]
