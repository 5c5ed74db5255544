"""The prompt's own text, run over cached KV below the layer at which recomputation resumes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.forward import PlannedPass
from samkv_rag.sparse.layout import PromptLayout


@dataclass(frozen=True)
class TextBelow:
    """The text's state entering a layer; scouting passes there anyway and leaves it for recomputation."""

    hidden: torch.Tensor
    """``[1, text tokens, hidden]`` entering the layer"""
    kv: KVBuffer
    """Keys and values of the text in the layers below"""


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
