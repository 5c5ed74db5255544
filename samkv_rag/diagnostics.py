"""Signs that an answer is worse or slower than requested, without being an error.

Source: the failure signatures of SamKV (arXiv 2508.11661), measured in our own way. The message of a diagnostic has
the value, the limit and the remedy.
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
"""What each diagnostic says of an answer."""
MAX_QUERY_COSINE = 0.9999
"""At 1, all chunks have the same query. Qwen2.5-Coder-0.5B has 0.96 for 2 chunks of HotpotQA, 0.9994 for 10."""


def consensus_failure(queries: torch.Tensor, block_scores: torch.Tensor, personalised: bool) -> list[Diagnostic]:
    """The chunks' queries are nearly identical, or the dynamic share chose no block of any chunk.

    ``queries`` ``[chunks, layers, heads, head_dim]`` fail if the mean cosine between different chunks, over layers
    and heads, is above MAX_QUERY_COSINE: personalisation then changes nothing. ``block_scores`` ``[blocks]`` are all
    -inf if in every chunk the anchors scored above or below all blocks. Reads two values back from the device.
    """
    unit, num_chunks = normalize(queries, dim=-1), len(queries)
    # The sum of u_i · u_j over all pairs of i and j is the squared norm of the sum of u_i.
    of_all_pairs = unit.sum(dim=0).square().sum(dim=-1).mean()
    of_themselves = unit.square().sum(dim=-1).mean() * num_chunks
    of_others = (of_all_pairs - of_themselves) / max(1, num_chunks * (num_chunks - 1))
    chosen = (block_scores > -torch.inf).sum()
    cosine, num_chosen = torch.stack((of_others, chosen.to(queries.dtype))).tolist()
    said = []
    if personalised and cosine > MAX_QUERY_COSINE:
        said.append(
            f"the personalised queries of {num_chunks} chunks have a mean cosine of {cosine:.5f}, above "
            f"{MAX_QUERY_COSINE}, so they do not tell the chunks apart; retrieve fewer or less similar chunks"
        )
    if len(block_scores) and not num_chosen:
        said.append(
            f"none of {len(block_scores)} blocks stands out from its chunk's anchors, so these alone are kept; "
            "set SamKV(dynamic_share=False) or a smaller EngineConfig(block_tokens=...)"
        )
    return [Diagnostic(CONSENSUS_FAILURE, "; ".join([*said, "or use the method Scout"]))] if said else []
