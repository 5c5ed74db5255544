"""Full prefill: every token of the prompt through the model. The reference for all others."""

from __future__ import annotations

from typing import ClassVar

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.layout import PromptLayout


class FullPrefill(PrefillMethod):
    """What a model does without samkv_rag; uses no cache."""

    name: ClassVar[str] = "full_prefill"
    reads_cache: ClassVar[bool] = False

    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """See :class:`PrefillMethod`."""
        with clock.phase("prefill"):
            position_ids = torch.arange(layout.num_tokens)
            hidden = decoder.run_layers(decoder.embed(layout.token_ids[None]), position_ids, CausalPass(buffer))
        return Prefilled(hidden[:, -1:], kept=torch.ones_like(layout.is_chunk), recomputed=layout.is_chunk)
