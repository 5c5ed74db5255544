"""Selective recomputation: the kept tokens run through the model again, so that chunks see each other."""

from __future__ import annotations

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.model.attention import attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.forward import PlannedPass
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.plan import Plan, make_plan
from samkv_rag.sparse.text import TextBelow, run_text_below


def recompute(
    decoder: Decoder,
    layout: PromptLayout,
    kept: torch.Tensor,
    recomputed: torch.Tensor,
    config: SamKVConfig,
    buffer: KVBuffer,
    below: TextBelow | None = None,
) -> torch.Tensor:
    """Compute all text and the ``recomputed`` tokens, fill ``buffer`` with the kept KV.

    ``kept`` and ``recomputed`` are ``[tokens]`` masks. Returns the hidden state ``[1, 1, hidden]`` of
    the prompt's last token. With ``resume_layer`` the layers below it run the text alone, unless
    scouting did (``below``); from there on the recomputed tokens join with the hidden states stored
    at ingestion.
    """
    theta = config.fusion_theta if config.update == "fusion" else None
    plan = make_plan(layout, kept, recomputed, config.recompute_view, reads_recomputed=theta is not None)
    resume_layer = config.first_recomputed_layer(decoder.num_layers) if bool(recomputed.any()) else 0
    if resume_layer:
        hidden = _resume(decoder, layout, kept, plan, resume_layer, buffer, below)
    else:
        hidden = decoder.embed(layout.token_ids[plan.row_positions][None])
    attend = PlannedPass(decoder, plan, buffer, fusion_theta=theta)
    last_layer = decoder.num_layers - 1
    hidden = decoder.run_layers(hidden, plan.row_positions, attend, range(resume_layer, last_layer))
    return _run_last_layer(decoder, hidden, plan, attend, buffer)


def _run_last_layer(
    decoder: Decoder, hidden: torch.Tensor, plan: Plan, attend: PlannedPass, buffer: KVBuffer
) -> torch.Tensor:
    """Run the prompt's last token, which sees all that is kept; of the other rows only KV is needed."""
    last_layer = decoder.num_layers - 1
    attend.keep(last_layer, *decoder.project(hidden, plan.row_positions, last_layer))

    def attend_to_kept(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        return attention(query, *buffer.layer(layer), scaling)

    return decoder.run_layers(hidden[:, -1:], plan.row_positions[-1:], attend_to_kept, [last_layer])


def _resume(
    decoder: Decoder,
    layout: PromptLayout,
    kept: torch.Tensor,
    plan: Plan,
    resume_layer: int,
    buffer: KVBuffer,
    below: TextBelow | None,
) -> torch.Tensor:
    """Keep the layers below ``resume_layer``; return the rows' hidden states ``[1, rows, hidden]`` entering it."""
    narrow = make_plan(layout, kept)
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
