"""SamKV (arXiv 2508.11661) as published: personalised queries select, by block mean keys."""

from __future__ import annotations

from typing import ClassVar

from samkv_rag.config import SamKVConfig
from samkv_rag.diagnostics import consensus_failure
from samkv_rag.methods.sparse import Selected, SparsePrefill
from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.consensus import consensus_blocks
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.selection import Blocks, BlockScores, Budget, anchor_mask


class SamKV(SparsePrefill):
    """Rebuilt from the paper's abstract; no code was published."""

    name: ClassVar[str] = "samkv"

    def select(self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, budget: Budget) -> Selected:
        """See :class:`SparsePrefill`.

        The means were taken at ingestion, so the blocks are those of the configuration, even where the
        anchors of this prompt had to shrink.
        """
        anchors = anchor_mask(layout, budget)
        blocks = Blocks(layout, config.initial_tokens, config.local_tokens, config.block_tokens)
        queries, scores = consensus_blocks(decoder, layout, anchors, config)
        failure = consensus_failure(queries, scores, config.personalization)
        kept = anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum()))
        return Selected(kept, BlockScores(blocks, scores), diagnostics=tuple(failure))
