"""CacheBlend (arXiv 2405.16444, EuroSys 2025): all cached KV kept, the tokens that deviate most recomputed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.methods.base import Clock, Prefilled, PrefillMethod
from samkv_rag.model.attention import attention
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.forward import PlannedPass
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.plan import Plan, make_plan

CHECK_LAYER = 1
"""Layer 0 cannot deviate: its keys and values depend on the token and its position alone."""

_KV = tuple[torch.Tensor, torch.Tensor]


class CacheBlend(PrefillMethod):
    """Recomputes ``config.sequence_ratio`` of the chunk tokens: those whose cached KV is most wrong.

    Source: CacheBlend, sections 4 and 5. All tokens run through layer 0 and are projected to keys and
    values at layer 1, the check layer; the tokens whose fresh KV is furthest from the cached run on
    through the layers above, see everything before them, and overwrite the cache. The paper filters
    further, a little at every layer; this is the single check layer that its authors' LMCache uses.
    What the lower two layers computed for all tokens is kept, for it is exact. Text is computed as
    ever. ``recomputed`` are the tokens recomputed above the check layer.
    """

    name: ClassVar[str] = "cacheblend"

    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """See :class:`PrefillMethod`."""
        with clock.phase("select"):
            hidden, fresh = run_to_check_layer(decoder, layout, buffer)
            recomputed = most_deviating(deviations(decoder, layout, fresh), layout, config.sequence_ratio)
        everything = torch.ones_like(recomputed)
        with clock.phase("recompute"):
            # Everything stays, so the kept columns need no copy of their own.
            plan = replace(make_plan(layout, everything, recomputed, view="all"), kept_columns=None)
            hidden = hidden[:, plan.row_positions]
            hidden = decoder.run_layers(hidden, plan.row_positions, FreshPass(plan, fresh, buffer), [CHECK_LAYER])
            above = range(CHECK_LAYER + 1, decoder.num_layers)
            hidden = decoder.run_layers(hidden, plan.row_positions, PlannedPass(decoder, plan, buffer), above)
        return Prefilled(hidden[:, -1:], everything, recomputed)


def run_to_check_layer(decoder: Decoder, layout: PromptLayout, buffer: KVBuffer) -> tuple[torch.Tensor, _KV]:
    """Run all tokens through the layers below the check layer and keep their KV.

    Returns the hidden states ``[1, tokens, hidden]`` entering it, and its keys and values of all tokens,
    each ``[1, kv_heads, tokens, head_dim]``.
    """
    position_ids = torch.arange(layout.num_tokens, device=layout.device)
    hidden = decoder.embed(layout.token_ids[None])
    hidden = decoder.run_layers(hidden, position_ids, CausalPass(buffer), range(CHECK_LAYER))
    return hidden, decoder.project(hidden, position_ids, CHECK_LAYER)


def deviations(decoder: Decoder, layout: PromptLayout, fresh: _KV) -> torch.Tensor:
    """Squared distance between fresh and cached KV of every token, ``[tokens]``; 0 outside chunks.

    ``fresh`` is as :func:`run_to_check_layer` returns it.
    """
    found = torch.zeros(layout.num_tokens, device=layout.device)
    for segment in layout.chunks:
        assert segment.reader is not None
        keys, values = (tensor.to(layout.device) for tensor in segment.reader.layer(CHECK_LAYER))
        cached = (decoder.turn_by(torch.tensor([segment.start]))(keys), values)
        differences = (ours[0, :, segment.span].float() - theirs for ours, theirs in zip(fresh, cached, strict=True))
        found[segment.span] = sum(difference.square().sum(dim=(0, 2)) for difference in differences)
    return found


def most_deviating(deviation: torch.Tensor, layout: PromptLayout, sequence_ratio: float) -> torch.Tensor:
    """Mask ``[tokens]`` of the chunk tokens with the highest ``deviation``, ``sequence_ratio`` of them at most."""
    num_tokens = int(sequence_ratio * layout.num_chunk_tokens + 1e-6)
    positions = layout.is_chunk.nonzero()[:, 0]
    mask = torch.zeros_like(layout.is_chunk)
    mask[positions[deviation[positions].topk(num_tokens).indices]] = True
    return mask


class FreshPass:
    """Attention of the plan's rows at the check layer, over keys and values that are fresh for all tokens."""

    def __init__(self, plan: Plan, fresh: _KV, buffer: KVBuffer) -> None:
        self._plan = plan
        self._fresh = fresh
        self._buffer = buffer

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        keys, values = self._buffer.append(layer, *self._fresh)
        output = torch.empty_like(query)
        for group in self._plan.groups:
            seen = slice(None) if group.columns is None else group.columns
            rows = query[:, :, group.rows]
            output[:, :, group.rows] = attention(
                rows, keys[:, :, seen], values[:, :, seen], scaling, group.mask, group.mask is None
            )
        return output
