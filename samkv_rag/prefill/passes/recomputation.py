"""Selective recomputation: the retained tokens run through the model again, so that chunks see each other."""

from __future__ import annotations

import torch

from samkv_rag.model.attention import LayerSpec, Visibility, causal_attention
from samkv_rag.prefill.base import PrefillContext, Prefilled
from samkv_rag.prefill.passes.plan import View, make_plan
from samkv_rag.prefill.passes.planned_pass import PlannedPass


def recompute(
    context: PrefillContext,
    retained: torch.Tensor,
    recomputed: torch.Tensor,
    view: View = "all",
    fusion_theta: float | None = None,
) -> Prefilled:
    """Compute all text and the ``recomputed`` chunk tokens; fill the buffer with the KV of the ``retained``.

    Both are ``[tokens]`` masks, the first within the second. ``fusion_theta`` is the weight of recomputed KV where it
    is mixed with the cached; None: it takes its place.
    """
    decoder, buffer, last_layer = context.decoder, context.buffer, context.decoder.num_layers - 1
    with context.clock.phase("recompute"):
        plan = make_plan(context.layout, retained, recomputed, view, reads_recomputed=fusion_theta is not None)
        planned = PlannedPass(decoder, plan, buffer, fusion_theta=fusion_theta)
        hidden = planned.run(range(last_layer))
        # In the last layer the prompt's last token alone, which sees all that is retained; of the others KV is enough.
        planned.keep(last_layer, *decoder.project(hidden, plan.row_positions, last_layer))
        visibility = Visibility(buffer.positions[-1:], buffer.positions)

        def attend_to_retained(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
        ) -> torch.Tensor:
            return causal_attention(query, *buffer.layer(layer), spec, visibility)

        hidden = decoder.run_layers(hidden[:, -1:], plan.row_positions[-1:], attend_to_retained, [last_layer])
    return Prefilled(hidden, retained, recomputed)
