"""Signs that an answer is worse or slower than requested, without being an error.

Source: the failure signatures of SamKV (arXiv 2508.11661), measured in our own way. Each function returns at most
one diagnostic; its message has the value, the limit and the remedy.
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
"""At 1, all chunks have the same query. Qwen2.5-Coder-0.5B has 0.96 for 2 chunks of HotpotQA, 0.9994 for 10."""


def cache_underflow(
    budget_tokens: int, num_chunks: int, wanted: tuple[int, int], granted: tuple[int, int]
) -> list[Diagnostic]:
    """The anchors do not fit the budget: ``granted`` instead of ``wanted`` initial and local tokens per chunk.

    A small ratio of few tokens can give a budget of 0 tokens, which keeps nothing of the chunks.
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
    """The prompt computed a larger share of the chunk tokens than the method's ``allowed_ratio``.

    ``computed_ratio`` counts recomputed tokens and those of the ``num_missed`` chunks that were not stored.
    It is 1 if full prefill ran instead, for ``fallback_reason``.
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
    """The chunks' queries are nearly identical, or the dynamic share chose no block of any chunk.

    ``queries`` ``[chunks, layers, heads, head_dim]`` fail if the mean cosine between different chunks, over layers
    and heads, is above MAX_QUERY_COSINE: personalisation then changes nothing. ``block_scores`` ``[blocks]`` are all
    -inf if in every chunk the anchors scored above or below all blocks. Reads two values back from the device.
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
    """Mean cosine between different chunks' queries ``[chunks, layers, heads, head_dim]``; 0 for one chunk."""
    num_chunks = len(queries)
    unit = normalize(queries, dim=-1)
    # The sum of u_i · u_j over all pairs of i and j is the squared norm of the sum of u_i.
    of_all_pairs = unit.sum(dim=0).square().sum(dim=-1).mean()
    of_themselves = unit.square().sum(dim=-1).mean() * num_chunks
    return (of_all_pairs - of_themselves) / max(1, num_chunks * (num_chunks - 1))
