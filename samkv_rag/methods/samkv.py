"""SamKV (arXiv 2508.11661): select with the question in view, recompute the kept, decode from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.chunk_cache import Layout
from samkv_rag.config import SamKVConfig
from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.consensus import consensus_blocks
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.recomputation import recompute
from samkv_rag.sparse.scouting import scout
from samkv_rag.sparse.selection import Blocks, Budget, anchor_mask, plan_budget
from samkv_rag.sparse.text import TextBelow


class SamKV(PrefillMethod):
    """Keeps ``config.sequence_ratio`` of the chunk tokens, by ``config.selector``."""

    name: ClassVar[str] = "samkv"

    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """See :class:`PrefillMethod`."""
        notes: list[str] = []
        with clock.phase("select"):
            selected = select(decoder, layout, config, notes)
        recomputed = selected.tokens if config.recompute else torch.zeros_like(selected.tokens)
        kept = selected.tokens | layout.is_prefix | layout.is_text
        with clock.phase("recompute"):
            hidden = recompute(decoder, layout, kept, recomputed, config, buffer, selected.text_below)
        return Prefilled(hidden, kept, recomputed, tuple(notes))


@dataclass(frozen=True)
class Selected:
    """Chunk tokens to keep, a ``[tokens]`` mask, and what the selector computed on its way."""

    tokens: torch.Tensor
    text_below: TextBelow | None = None


def select(decoder: Decoder, layout: PromptLayout, config: SamKVConfig, notes: list[str]) -> Selected:
    """Choose the chunk tokens to keep: anchors, then the best blocks within the budget."""
    if config.sequence_ratio == 1:
        return Selected(layout.is_chunk)
    wanted = Layout(config.initial_tokens, config.local_tokens, config.block_tokens)
    budget = plan_budget(layout, config.sequence_ratio, wanted)
    if (budget.initial_tokens, budget.local_tokens) != (wanted.initial_tokens, wanted.local_tokens):
        notes.append(
            f"a budget of {budget.num_tokens} tokens for {len(layout.chunks)} chunks: anchors shrunk from "
            f"{wanted.initial_tokens}+{wanted.local_tokens} to {budget.initial_tokens}+{budget.local_tokens}"
        )
    return _SELECTORS[config.selector](decoder, layout, config, budget)


def _select_by_scouting(decoder: Decoder, layout: PromptLayout, config: SamKVConfig, budget: Budget) -> Selected:
    token_scores, text_below = scout(decoder, layout, config)
    anchors = anchor_mask(layout, budget)
    blocks = Blocks(layout, budget.initial_tokens, budget.local_tokens, config.block_tokens)
    scores = blocks.top_token_mean(token_scores, config.block_top_tokens)
    return Selected(anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum())), text_below)


def _select_by_consensus(decoder: Decoder, layout: PromptLayout, config: SamKVConfig, budget: Budget) -> Selected:
    # The means were taken at ingestion, so the blocks are those of the configuration, even where
    # the anchors of this prompt had to shrink.
    anchors = anchor_mask(layout, budget)
    blocks = Blocks(layout, config.initial_tokens, config.local_tokens, config.block_tokens)
    scores = consensus_blocks(decoder, layout, anchors, config)
    return Selected(anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum())))


_Selector = Callable[[Decoder, PromptLayout, SamKVConfig, Budget], Selected]
_SELECTORS: dict[str, _Selector] = {"scout": _select_by_scouting, "samkv": _select_by_consensus}
