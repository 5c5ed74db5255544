"""Update by fusion: recomputed keys and values mixed with the cached ones."""

from __future__ import annotations

import torch


def fuse(recomputed: torch.Tensor, cached: torch.Tensor, is_chunk: torch.Tensor, theta: float) -> torch.Tensor:
    """θ·recomputed + (1−θ)·cached for chunk tokens, the recomputed alone for text.

    Source: SamKV (arXiv 2508.11661), selective recomputation. ``recomputed`` and ``cached`` are
    ``[batch, kv_heads, tokens, head_dim]``, ``is_chunk`` is ``[tokens]``.
    """
    weight = torch.where(is_chunk, theta, 1.0).to(recomputed.dtype)[:, None]
    # Text has nothing cached: its columns hold another layer's values, which must not leak in.
    return weight * recomputed + torch.where(is_chunk[:, None], (1 - weight) * cached, 0)
