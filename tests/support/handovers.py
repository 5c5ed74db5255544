"""Decoding from a handover by transformers alone."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache


def cache(keys: torch.Tensor, values: torch.Tensor) -> Any:
    """Keys and values ``[layers, tokens, kv_heads, head_dim]`` as a model's own forward takes them."""
    filled = DynamicCache()
    for layer, states in enumerate(zip(keys, values, strict=True)):
        filled.update(*(one.transpose(0, 1)[None].clone() for one in states), layer)
    return filled


@torch.inference_mode()
def logits(model: Any, held: Any, token_ids: list[int]) -> torch.Tensor:
    """``[tokens, vocab]`` of tokens that stand right behind those ``held``, to which they are added."""
    positions = torch.arange(held.get_seq_length(), held.get_seq_length() + len(token_ids))[None]
    return model(torch.tensor([token_ids]), past_key_values=held, position_ids=positions).logits[0]
