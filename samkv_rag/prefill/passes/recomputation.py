"""Selective recomputation: the retained tokens run through the model again, so that chunks see each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.model.attention import LayerSpec, Visibility, causal_attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill.passes.plan import Plan, View, make_plan
from samkv_rag.prefill.passes.planned_pass import PlannedPass
from samkv_rag.prompt.layout import PromptLayout


@dataclass(frozen=True)
class Recomputation:
    """What is retained, what is recomputed, and how."""

    retained: torch.Tensor
    """``[tokens]`` mask"""
    recomputed: torch.Tensor
    """``[tokens]`` mask of chunk tokens, within the retained"""
    view: View = "retained"
    fusion_theta: float | None = None
    """Weight of recomputed KV where it is mixed with the cached; None: it takes its place."""


def recompute(decoder: Decoder, layout: PromptLayout, buffer: KVBuffer, recomputation: Recomputation) -> torch.Tensor:
    """Compute all text and the recomputed tokens, fill ``buffer`` with the retained KV.

    Returns the hidden state ``[1, 1, hidden]`` of the prompt's last token.
    """
    theta, recomputed = recomputation.fusion_theta, recomputation.recomputed
    plan = make_plan(layout, recomputation.retained, recomputed, recomputation.view, reads_recomputed=theta is not None)
    attend = PlannedPass(decoder, plan, buffer, fusion_theta=theta)
    hidden = decoder.embed(layout.token_ids[plan.row_positions][None])
    hidden = decoder.run_layers(hidden, plan.row_positions, attend, range(decoder.num_layers - 1))
    return _run_last_layer(decoder, hidden, plan, attend, buffer)


def _run_last_layer(
    decoder: Decoder, hidden: torch.Tensor, plan: Plan, attend: PlannedPass, buffer: KVBuffer
) -> torch.Tensor:
    """Run the prompt's last token, which sees all that is retained; of the other rows only KV is needed."""
    last_layer = decoder.num_layers - 1
    attend.keep(last_layer, *decoder.project(hidden, plan.row_positions, last_layer))
    visibility = Visibility(buffer.positions[-1:], buffer.positions)

    def attend_to_retained(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        return causal_attention(query, *buffer.layer(layer), spec, visibility)

    return decoder.run_layers(hidden[:, -1:], plan.row_positions[-1:], attend_to_retained, [last_layer])
