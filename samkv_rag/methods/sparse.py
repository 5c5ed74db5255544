"""What the sparse methods share: select within a budget, recompute what was selected, drop the rest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch

from samkv_rag.chunk_cache import Layout
from samkv_rag.config import SamKVConfig
from samkv_rag.diagnostics import cache_underflow
from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.metrics import Diagnostic
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.recomputation import recompute
from samkv_rag.sparse.selection import BlockScores, Budget, plan_budget
from samkv_rag.sparse.text import TextBelow


@dataclass(frozen=True)
class Selected:
    """Chunk tokens to keep, a ``[tokens]`` mask, and what the selection computed on its way."""

    tokens: torch.Tensor
    block_scores: BlockScores | None = None
    text_below: TextBelow | None = None
    diagnostics: tuple[Diagnostic, ...] = ()


class SparsePrefill(PrefillMethod):
    """Keeps at most ``config.sequence_ratio`` of the chunk tokens and all other tokens."""

    def anchors(self, config: SamKVConfig) -> Layout:
        """How many of a chunk's first and last tokens always stay."""
        return Layout(config.initial_tokens, config.local_tokens, config.block_tokens)

    @abstractmethod
    def select(self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, budget: Budget) -> Selected:
        """Choose the chunk tokens to keep: the anchors, and ``budget.num_tokens`` at most with them."""

    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """See :class:`PrefillMethod`."""
        with clock.phase("select"):
            selected = self._select(decoder, layout, config)
        recomputed = selected.tokens if config.recompute else torch.zeros_like(selected.tokens)
        kept = selected.tokens | layout.is_prefix | layout.is_text
        with clock.phase("recompute"):
            hidden = recompute(decoder, layout, kept, recomputed, config, buffer, selected.text_below)
        return Prefilled(hidden, kept, recomputed, selected.diagnostics, selected.block_scores)

    def _select(self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig) -> Selected:
        if config.sequence_ratio == 1:
            return Selected(layout.is_chunk)
        wanted = self.anchors(config)
        budget = plan_budget(layout, config.sequence_ratio, wanted)
        shrunk = cache_underflow(
            budget.num_tokens,
            len(layout.chunks),
            (wanted.initial_tokens, wanted.local_tokens),
            (budget.initial_tokens, budget.local_tokens),
        )
        selected = self.select(decoder, layout, config, budget)
        return replace(selected, diagnostics=(*shrunk, *selected.diagnostics))
