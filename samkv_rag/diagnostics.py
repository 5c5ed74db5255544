"""Signatures of failure: what makes an answer worse or dearer than was asked for, though it is no error.

Source: the failure signatures of SamKV (arXiv 2508.11661); how they are measured here is ours. Each
function returns one diagnostic, or none; its message says the value, the limit and the remedy.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from samkv_rag.results import Diagnostic

CACHE_UNDERFLOW = "cache_underflow"
EXCESSIVE_RECOMPUTATION = "excessive_recomputation"
CONSENSUS_FAILURE = "consensus_failure"
MEANINGS = {
    CACHE_UNDERFLOW: "the budget does not hold the chunks' anchors, which were shrunk",
    EXCESSIVE_RECOMPUTATION: "more of the chunk tokens were computed for the prompt than the method asks for",
    CONSENSUS_FAILURE: "personalised queries do not tell chunks apart, or no block stands out from its anchors",
}
MAX_QUERY_COSINE = 0.9999
"""At 1 all chunks have the same query. Qwen2.5-Coder-0.5B has 0.96 for 2 chunks of HotpotQA, 0.9994 for 10."""


def cache_underflow(
    budget_tokens: int, num_chunks: int, wanted: tuple[int, int], granted: tuple[int, int]
) -> list[Diagnostic]:
    """The budget does not hold the anchors: ``granted`` instead of ``wanted`` initial and local tokens a chunk.

    A budget of 0 tokens, which a small ratio of few tokens comes to, keeps nothing of the chunks.
    """
    if budget_tokens == 0:
        said = "nothing of the chunks is kept, the answer comes from the rest of the prompt; raise sequence_ratio"
    elif granted != wanted:
        said = (
            f"anchors shrunk from {wanted[0]}+{wanted[1]} to {granted[0]}+{granted[1]}, for they may take half of it; "
            "raise sequence_ratio or retrieve fewer chunks"
        )
    else:
        return []
    return [Diagnostic(CACHE_UNDERFLOW, f"a budget of {budget_tokens} tokens for {num_chunks} chunks: {said}")]


def excessive_recomputation(
    computed_ratio: float, allowed_ratio: float, num_missed: int, fallback_reason: str | None
) -> list[Diagnostic]:
    """More than ``allowed_ratio``, the method's own share, of the chunk tokens were computed for this prompt.

    ``computed_ratio`` counts those recomputed and those of the ``num_missed`` chunks that the store lacked;
    where full prefill ran instead, for ``fallback_reason``, it is 1.
    """
    if computed_ratio <= allowed_ratio + 1e-6:
        return []
    if fallback_reason is not None:
        said = (
            f"full prefill ran: {fallback_reason}; ingest the chunks, let the question follow them, or lower "
            "min_chunk_tokens"
        )
    else:
        said = f"the store lacked {num_missed} of the prompt's chunks; ingest them beforehand, with add_chunks"
    value = f"{computed_ratio:.2f} of the chunk tokens were computed, the method asks for {allowed_ratio:g}"
    return [Diagnostic(EXCESSIVE_RECOMPUTATION, f"{value}: {said}")]


def consensus_failure(queries: torch.Tensor, block_scores: torch.Tensor, personalised: bool) -> list[Diagnostic]:
    """The chunks' queries are nearly identical, or no block of any chunk was chosen by its dynamic share.

    ``queries`` ``[chunks, layers, heads, head_dim]`` fail where the mean cosine between those of different
    chunks, over layers and heads, is above MAX_QUERY_COSINE: what the other chunks ask then changes nothing.
    Where ``block_scores`` ``[blocks]`` are all -inf, every chunk's anchors scored above all of its blocks, or
    below all of them. Reads two values back from the device.
    """
    chosen = (block_scores > -torch.inf).sum()
    cosine, num_chosen = torch.stack((mean_pairwise_cosine(queries), chosen.to(queries.dtype))).tolist()
    said = []
    if personalised and cosine > MAX_QUERY_COSINE:
        said.append(
            f"the personalised queries of {len(queries)} chunks have a mean cosine of {cosine:.5f}, above "
            f"{MAX_QUERY_COSINE}, so they do not tell the chunks apart; retrieve fewer or less similar chunks"
        )
    if len(block_scores) and not num_chosen:
        said.append(
            f"none of {len(block_scores)} blocks stands out from its chunk's anchors, so these alone are kept; "
            "set SamKV(dynamic_share=False) or a smaller EngineConfig(block_tokens=...)"
        )
    return [Diagnostic(CONSENSUS_FAILURE, "; ".join([*said, "or use the method Scout"]))] if said else []


def mean_pairwise_cosine(queries: torch.Tensor) -> torch.Tensor:
    """Mean cosine between different chunks' queries ``[chunks, layers, heads, head_dim]``; 0 for one chunk alone."""
    num_chunks = len(queries)
    unit = normalize(queries, dim=-1)
    # Summed over all pairs of i and j, u_i · u_j is the squared norm of the sum.
    of_all_pairs = unit.sum(dim=0).square().sum(dim=-1).mean()
    of_themselves = unit.square().sum(dim=-1).mean() * num_chunks
    return (of_all_pairs - of_themselves) / max(1, num_chunks * (num_chunks - 1))
