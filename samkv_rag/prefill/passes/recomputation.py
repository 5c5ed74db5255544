"""Selective recomputation: the retained tokens run through the model again, so that chunks see each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.model.attention import attention
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
    resume_layer: int = 0
    """Where recomputed tokens join, with the hidden states stored at ingestion; 0: at the bottom."""
    fusion_theta: float | None = None
    """Weight of recomputed KV where it is mixed with the cached; None: it takes its place."""


@dataclass(frozen=True)
class TextBelow:
    """The text's state entering a layer; scouting passes there anyway and leaves it for recomputation."""

    hidden: torch.Tensor
    """``[1, text tokens, hidden]`` entering the layer"""
    kv: KVBuffer
    """Keys and values of the text in the layers below"""


def recompute(
    decoder: Decoder,
    layout: PromptLayout,
    buffer: KVBuffer,
    recomputation: Recomputation,
    below: TextBelow | None = None,
) -> torch.Tensor:
    """Compute all text and the recomputed tokens, fill ``buffer`` with the retained KV.

    Returns the hidden state ``[1, 1, hidden]`` of the prompt's last token. The layers below
    ``resume_layer`` run the text alone, unless scouting did (``below``).
    """
    theta, recomputed = recomputation.fusion_theta, recomputation.recomputed
    plan = make_plan(layout, recomputation.retained, recomputed, recomputation.view, reads_recomputed=theta is not None)
    resume_layer = recomputation.resume_layer if bool(recomputed.any()) else 0
    if resume_layer:
        hidden = _resume(decoder, layout, recomputation.retained, plan, resume_layer, buffer, below)
    else:
        hidden = decoder.embed(layout.token_ids[plan.row_positions][None])
    attend = PlannedPass(decoder, plan, buffer, fusion_theta=theta)
    last_layer = decoder.num_layers - 1
    hidden = decoder.run_layers(hidden, plan.row_positions, attend, range(resume_layer, last_layer))
    return _run_last_layer(decoder, hidden, plan, attend, buffer)


def run_text_below(decoder: Decoder, layout: PromptLayout, attend: PlannedPass, layer: int) -> TextBelow:
    """Run all text through the layers below ``layer``; ``attend`` says what it sees."""
    kv = KVBuffer(decoder.num_layers)

    def record(
        number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        kv.append(number, key, value)
        return attend(number, query, key, value, scaling)

    hidden = decoder.embed(layout.token_ids[layout.is_text][None])
    positions = layout.is_text.nonzero()[:, 0]
    return TextBelow(decoder.run_layers(hidden, positions, record, range(layer)), kv)


def _run_last_layer(
    decoder: Decoder, hidden: torch.Tensor, plan: Plan, attend: PlannedPass, buffer: KVBuffer
) -> torch.Tensor:
    """Run the prompt's last token, which sees all that is retained; of the other rows only KV is needed."""
    last_layer = decoder.num_layers - 1
    attend.keep(last_layer, *decoder.project(hidden, plan.row_positions, last_layer))

    def attend_to_retained(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return attention(query, *buffer.layer(layer), scaling)

    return decoder.run_layers(hidden[:, -1:], plan.row_positions[-1:], attend_to_retained, [last_layer])


def _resume(
    decoder: Decoder,
    layout: PromptLayout,
    retained: torch.Tensor,
    plan: Plan,
    resume_layer: int,
    buffer: KVBuffer,
    below: TextBelow | None,
) -> torch.Tensor:
    """Keep the layers below ``resume_layer``; return the rows' hidden states ``[1, rows, hidden]`` entering it."""
    narrow = make_plan(layout, retained)
    below = below or run_text_below(decoder, layout, PlannedPass(decoder, narrow), resume_layer)
    lower = PlannedPass(decoder, narrow, buffer)
    for layer in range(resume_layer):
        lower.keep(layer, *below.kv.layer(layer))
    hidden = below.hidden.new_empty(1, len(plan.row_positions), below.hidden.shape[2])
    hidden[:, ~plan.row_is_chunk] = below.hidden
    hidden[:, plan.row_is_chunk] = _stored_hidden(layout, plan).to(below.hidden)
    return hidden


def _stored_hidden(layout: PromptLayout, plan: Plan) -> torch.Tensor:
    """Stored hidden states ``[1, rows that are chunk tokens, hidden]``, in order."""
    positions = plan.row_positions[plan.row_is_chunk].cpu()
    parts = []
    for segment in layout.chunks:
        assert segment.reader is not None
        inside = positions[(positions >= segment.start) & (positions < segment.stop)]
        parts.append(segment.reader.resume_hidden()[inside - segment.start])
    return torch.cat(parts)[None]
