"""The paper's block scores: personalised queries against block mean keys.

Source: SamKV (arXiv 2508.11661), cross-context selection, rebuilt from its abstract.
"""

from __future__ import annotations

import torch

from samkv_rag.chunk_cache import Layout, Means
from samkv_rag.config import SamKVConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.layout import PromptLayout, Segment
from samkv_rag.sparse.personalization import generic_query, personalise
from samkv_rag.sparse.selection import dynamic_share


def consensus_blocks(
    decoder: Decoder, layout: PromptLayout, anchors: torch.Tensor, config: SamKVConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every block of every chunk over the last ``config.stable_layers`` layers.

    Returns the chunks' queries ``[chunks, layers, heads, head_dim]`` and the scores ``[blocks]``. With
    ``dynamic_share`` the blocks outside a chunk's own share get -inf: they are never kept, whatever
    the budget. ``anchors`` is a ``[tokens]`` mask.

    Raises:
        ConfigurationError: a chunk was summarised otherwise than ``config`` says.
    """
    _require_own_summaries(layout, config)
    layers = list(range(max(0, decoder.num_layers - config.stable_layers), decoder.num_layers))
    query = generic_query(decoder, layout, anchors, layers)
    means = [_turned(decoder, segment, layers) for segment in layout.chunks]
    local_queries = torch.stack([mean.local_mean_query for mean in means])
    queries = personalise(query, local_queries) if config.personalization else query.expand_as(local_queries)
    scores = torch.cat([_chunk_scores(q, mean, config) for q, mean in zip(queries, means, strict=True)])
    return queries, scores


def _require_own_summaries(layout: PromptLayout, config: SamKVConfig) -> None:
    """Refuse chunks whose blocks are not those of ``config``: their means would score other tokens."""
    wanted = _described(config)
    for segment in layout.chunks:
        assert segment.reader is not None
        if (found := _described(segment.reader.layout)) != wanted:
            raise ConfigurationError(
                f"method 'samkv' is asked to select by {wanted}, but the chunk at token {segment.start} was ingested "
                f"with {found}; ingest it again with an engine whose config has method='samkv', or use method='scout'"
            )


def _described(summary: SamKVConfig | Layout) -> str:
    return f"anchors {summary.initial_tokens}+{summary.local_tokens} and blocks of {summary.block_tokens} tokens"


def _chunk_scores(query: torch.Tensor, means: Means, config: SamKVConfig) -> torch.Tensor:
    """Scores ``[blocks]`` of one chunk from its query ``[layers, heads, head_dim]``."""
    num_kv_heads = means.block_mean_keys.shape[1]
    grouped = torch.unflatten(query, 1, (num_kv_heads, -1)).mean(dim=2)  # [layers, kv_heads, head_dim]
    scores = torch.einsum("lhd,lhbd->lb", grouped, means.block_mean_keys)
    if not config.dynamic_share or scores.shape[1] == 0:
        return scores.mean(dim=0)
    anchor_score = torch.einsum("lhd,lhd->l", grouped, means.anchor_mean_key)
    share = dynamic_share(scores, anchor_score)
    return scores.mean(dim=0).masked_fill(~_top_share(scores, share), -torch.inf)


def _top_share(scores: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Blocks among the best ``share`` of any layer, ``[blocks]``, from scores ``[layers, blocks]``."""
    ranks = scores.argsort(dim=1, descending=True).argsort(dim=1)
    return (ranks < (share * scores.shape[1]).ceil()).any(dim=0)


def _turned(decoder: Decoder, segment: Segment, layers: list[int]) -> Means:
    """A chunk's means at ``layers``, in float32, turned to the chunk's place in the prompt."""
    assert segment.reader is not None
    means = segment.reader.means()
    turn = decoder.turn_by(torch.tensor([segment.start]))
    blocks, anchor, query = (
        tensor[layers].to(decoder.device).float()
        for tensor in (means.block_mean_keys, means.anchor_mean_key, means.local_mean_query)
    )
    return Means(turn(blocks), turn(anchor), turn(query))
