"""Selective recomputation: the retained tokens run through the model again, so that chunks see each other."""

from __future__ import annotations

from functools import partial

import torch

from samkv_rag.model.attention import Visibility, causal_attention
from samkv_rag.prefill.base import PrefillContext, Prefilled
from samkv_rag.prefill.passes.plan import View, make_plan
from samkv_rag.prefill.passes.planned_pass import PlannedPass, TextStates


def recompute(
    context: PrefillContext,
    retained: torch.Tensor,
    recomputed: torch.Tensor,
    view: View = "all",
    fusion_theta: float | None = None,
    text: TextStates | None = None,
) -> Prefilled:
    """Compute all text and the ``recomputed`` chunk tokens; fill the buffer with the KV of the ``retained``.

    Both are ``[tokens]`` masks, the second within the first. ``fusion_theta`` is the weight of recomputed KV in a
    mix with the cached; None: it replaces the cached. ``text`` goes on from where another pass has brought it.
    """
    decoder, buffer, last_layer = context.decoder, context.buffer, context.decoder.num_layers - 1
    with context.clock.phase("recompute"):
        is_fusion = fusion_theta is not None
        plan_pass = partial(make_plan, context.layout, retained, recomputed, view, reads_recomputed=is_fusion)
        plan = plan_pass()
        hidden, layers = decoder.embed(plan.row_ids[None]), range(decoder.num_layers)
        if text is not None:
            is_text = ~plan.row_is_chunk
            beneath, known = plan_pass(with_text=False), (plan.row_columns[is_text], text.kv)
            chunks = PlannedPass(decoder, beneath, buffer, None, fusion_theta, layers[: len(text.kv)], text=known)
            hidden[:, is_text] = text.hidden
            if bool(recomputed.any()):
                hidden[:, plan.row_is_chunk] = chunks.run()
            else:  # the layers of transformers cannot run no rows
                for layer, states in enumerate(text.kv):
                    chunks.keep(layer, *(of_rows[:, :, :0] for of_rows in states))
            layers = layers[len(text.kv) :]
        planned = PlannedPass(decoder, plan, buffer, fusion_theta=fusion_theta, layers=layers)
        hidden = decoder.run_layers(hidden, plan.row_positions, planned, layers[:-1])
        # The last layer computes KV alone, and only the prompt's last token, which sees all retained ones, goes on.
        planned.keep(last_layer, *decoder.project(hidden, plan.row_positions, last_layer))
        visibility = Visibility(buffer.positions[-1:], buffer.positions)
        hidden = decoder.run_layers(
            hidden[:, -1:],
            plan.row_positions[-1:],
            lambda layer, query, key, value, spec: causal_attention(query, *buffer.layer(layer), spec, visibility),
            [last_layer],
        )
    return Prefilled(hidden, retained, recomputed)
