"""Scouting, ours and the default: the question reads the whole cached KV and points at what it needs."""

from __future__ import annotations

from typing import ClassVar

from samkv_rag.chunk_cache import Layout
from samkv_rag.config import SamKVConfig
from samkv_rag.methods.sparse import Selected, SparsePrefill
from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.scouting import scout
from samkv_rag.sparse.selection import Blocks, BlockScores, Budget, anchor_mask


class Scout(SparsePrefill):
    """SamKV's flow with another selection, which points right on small models too."""

    name: ClassVar[str] = "scout"

    def anchors(self, config: SamKVConfig) -> Layout:
        """First tokens only: they draw attention whatever they say, so their scores mean little, and they
        name what the chunk is about. Last tokens have to earn their place like all others."""
        return Layout(config.initial_tokens, 0, config.span_tokens)

    def select(self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, budget: Budget) -> Selected:
        """See :class:`SparsePrefill`."""
        token_scores, text_below = scout(decoder, layout, config)
        anchors = anchor_mask(layout, budget)
        spans = Blocks(layout, budget.initial_tokens, budget.local_tokens, config.span_tokens)
        scores = spans.top_token_mean(token_scores, config.span_top_tokens)
        kept = anchors | spans.best_within(scores, budget.num_tokens - int(anchors.sum()))
        return Selected(kept, BlockScores(spans, scores), text_below)
