"""SamKV (arXiv 2508.11661) as published: personalised queries select, by block mean keys.

Rebuilt from the paper's text; no code was published. The question attends to the anchors of all chunks.
Its mean query is shifted for each chunk by the other chunks' local queries, and scores blocks by their mean
keys, which were computed at ingestion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from samkv_rag.checks import require_bool, require_integer
from samkv_rag.chunk_cache import Summary
from samkv_rag.diagnostics import consensus_failure
from samkv_rag.model.attention import LayerSpec
from samkv_rag.model.decoder import Decoder
from samkv_rag.prefill.base import PrefillContext
from samkv_rag.prefill.passes.plan import make_plan
from samkv_rag.prefill.passes.planned_pass import PlannedPass
from samkv_rag.prefill.passes.selection import Anchors, Blocks, BlockScores, Budget, anchor_mask
from samkv_rag.prefill.sparse import Selected, SparsePrefill
from samkv_rag.prompt.layout import PromptLayout, Segment


@dataclass(frozen=True)
class SamKV(SparsePrefill):
    """The paper's selection. Anchors and blocks are those of the engine's ``EngineConfig``.

    Args:
        stable_layers: how many of the last layers select. If layers have windows, only the widest ones count.
        personalization: add the other chunks' local queries to the question's.
        dynamic_share: derive the share to retain from the scores, within the budget; else use the whole budget.

    Other arguments: see :class:`SparsePrefill`.
    """

    name: ClassVar[str] = "samkv"

    stable_layers: int = 4
    personalization: bool = True
    dynamic_share: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("stable_layers", self.stable_layers, 1)
        require_bool("personalization", self.personalization)
        require_bool("dynamic_share", self.dynamic_share)

    def anchors(self, context: PrefillContext) -> Anchors:
        return Anchors(context.spec.initial_tokens, context.spec.local_tokens)

    def select(self, context: PrefillContext, budget: Budget) -> Selected:
        decoder, layout = context.decoder, context.layout
        layers = decoder.widest_layers[-self.stable_layers :]
        anchors = anchor_mask(layout, budget.anchors)
        query = generic_query(decoder, layout, anchors, layers)
        summaries = [_rotated_summary(decoder, segment, layers) for segment in layout.chunks]
        local_queries = torch.stack([summary.local_mean_query for summary in summaries])
        queries = personalized_queries(query, local_queries) if self.personalization else query.expand_as(local_queries)
        scores = torch.cat([self._chunk_scores(q, summary) for q, summary in zip(queries, summaries, strict=True)])
        # Block means were computed at ingestion, so blocks keep the engine's anchors even if this prompt's shrank.
        blocks = Blocks(layout, self.anchors(context), context.spec.block_tokens)
        retained = anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum()))
        failure = consensus_failure(queries, scores, self.personalization)
        return Selected(retained, BlockScores(blocks, scores), diagnostics=tuple(failure))

    def _chunk_scores(self, query: torch.Tensor, summary: Summary) -> torch.Tensor:
        """Score one chunk's blocks, ``[blocks]``, by its query ``[layers, heads, head_dim]``.

        With ``dynamic_share``, blocks outside the chunk's share get -inf: they are never retained, whatever the budget.
        """
        num_kv_heads = summary.block_mean_keys.shape[1]
        grouped = torch.unflatten(query, 1, (num_kv_heads, -1)).mean(dim=2)  # [layers, kv_heads, head_dim]
        scores = torch.einsum("lhd,lhbd->lb", grouped, summary.block_mean_keys)
        if not self.dynamic_share or scores.shape[1] == 0:
            return scores.mean(dim=0)
        anchor_score = torch.einsum("lhd,lhd->l", grouped, summary.anchor_mean_key)
        ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
        num_best = (dynamic_share(scores, anchor_score) * scores.shape[1]).ceil()
        is_best_of_any_layer = (ranks < num_best).any(dim=0)
        return scores.mean(dim=0).masked_fill(~is_best_of_any_layer, -torch.inf)


def generic_query(decoder: Decoder, layout: PromptLayout, anchors: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Let the question attend to all chunks' ``anchors`` ``[tokens]``; return its mean query.

    ``[len(layers), heads, head_dim]``, after RoPE at the question's positions (section 3, generic query).
    """
    plan = make_plan(layout, retained=anchors | ~layout.is_chunk)
    num_rows = layout.tail.stop - layout.tail.start
    mean_queries: dict[int, torch.Tensor] = {}

    def record(layer: int, query: torch.Tensor, keys: torch.Tensor, spec: LayerSpec) -> None:
        mean_queries[layer] = query[0, :, -num_rows:].float().mean(dim=1)

    PlannedPass(decoder, plan, observer=record).run()
    return torch.stack([mean_queries[layer] for layer in layers])


def personalized_queries(query: torch.Tensor, local_queries: torch.Tensor) -> torch.Tensor:
    """Compute Q̂_i = Q + mean over j ≠ i of |cos(Q, Qloc_j)| · Qloc_j, head by head.

    ``query`` is ``[layers, heads, head_dim]``; ``local_queries`` and the result are
    ``[chunks, layers, heads, head_dim]``.
    """
    agreement = cosine_similarity(query[None], local_queries, dim=-1).abs()
    weighted = agreement[..., None] * local_queries
    return query + (weighted.sum(dim=0) - weighted) / max(1, len(local_queries) - 1)


def dynamic_share(block_scores: torch.Tensor, anchor_score: torch.Tensor) -> torch.Tensor:
    """Return the share of a chunk's blocks to retain, by comparing them with its anchors.

    P = (max s − a) / (max s − min s) if min s < a ≤ max s, else 0; averaged over layers. ``block_scores`` is
    ``[layers, blocks]``, ``anchor_score`` ``[layers]``.
    """
    high, low = block_scores.amax(dim=1), block_scores.amin(dim=1)
    inside = (low < anchor_score) & (anchor_score <= high)
    share = (high - anchor_score) / (high - low).clamp(min=1e-12)
    return torch.where(inside, share, 0.0).mean()


def _rotated_summary(decoder: Decoder, segment: Segment, layers: list[int]) -> Summary:
    """Return a chunk's summary at ``layers``, in float32, rotated to the chunk's place in the prompt."""
    assert segment.reader is not None
    summary = segment.reader.summary()
    rotate = decoder.rotation_by(torch.tensor([segment.rotate_offset]))
    means = (summary.block_mean_keys, summary.anchor_mean_key, summary.local_mean_query)
    return Summary(
        *(torch.stack([rotate[layer](mean[layer].to(decoder.device).float()) for layer in layers]) for mean in means)
    )
