"""Personalised queries: the question's query, bent for each chunk by what the other chunks ask.

Source: SamKV (arXiv 2508.11661), inter-document consensus.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cosine_similarity

from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.forward import PlannedPass
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.plan import make_plan


def generic_query(decoder: Decoder, layout: PromptLayout, anchors: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """Let the question attend to all chunks' ``anchors`` ``[tokens]``; return its mean query.

    ``[len(layers), heads, head_dim]``, after RoPE at the question's positions.
    """
    plan = make_plan(layout, kept=layout.is_prefix | layout.is_text | anchors)
    num_rows = layout.tail.stop - layout.tail.start
    mean_queries: dict[int, torch.Tensor] = {}

    def record(layer: int, query: torch.Tensor, keys: torch.Tensor, scaling: float) -> None:
        mean_queries[layer] = query[0, :, -num_rows:].float().mean(dim=1)

    hidden = decoder.embed(layout.token_ids[plan.row_positions][None])
    decoder.run_layers(hidden, plan.row_positions, PlannedPass(decoder, plan, observer=record))
    return torch.stack([mean_queries[layer] for layer in layers])


def personalise(query: torch.Tensor, local_queries: torch.Tensor) -> torch.Tensor:
    """Q̂_i = Q + mean over j ≠ i of |cos(Q, Qloc_j)| · Qloc_j, head by head.

    ``query`` ``[layers, heads, head_dim]``, ``local_queries`` ``[chunks, layers, heads, head_dim]``;
    returns one query per chunk, shaped like ``local_queries``.
    """
    num_chunks = local_queries.shape[0]
    if num_chunks == 1:
        return query[None]
    agreement = cosine_similarity(query[None], local_queries, dim=-1).abs()
    weighted = agreement[..., None] * local_queries
    return query + (weighted.sum(dim=0) - weighted) / (num_chunks - 1)
