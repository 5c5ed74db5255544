"""Naive reuse: all cached KV kept as it is, chunks never see each other. The lower reference."""

from __future__ import annotations

from typing import ClassVar

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.recomputation import recompute


class NaiveReuse(PrefillMethod):
    """Keys turned to their places in the prompt, nothing recomputed, nothing dropped."""

    name: ClassVar[str] = "naive_reuse"

    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """See :class:`PrefillMethod`."""
        everything, nothing = torch.ones_like(layout.is_chunk), torch.zeros_like(layout.is_chunk)
        with clock.phase("recompute"):
            hidden = recompute(decoder, layout, everything, nothing, config, buffer)
        return Prefilled(hidden, kept=everything, recomputed=nothing)
