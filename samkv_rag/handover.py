"""Hands a finished prefill to another engine, which decodes from it.

Attention depends on differences of positions only. So the K retained tokens of a prompt of T tokens need not keep
their gaps: if every cached key is rotated by K − T, an engine whose prompt is the K tokens decodes from position K
what this one would decode from T.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import safetensors.torch
import torch

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer


@dataclass(frozen=True)
class Handover:
    """The prompt from which another engine decodes, and the KV of all its tokens but the last."""

    token_ids: tuple[int, ...]
    """The prompt's retained tokens, then the answer's first."""
    keys: torch.Tensor = field(repr=False)
    """``[layers, tokens, kv_heads, head_dim]``, after RoPE, rotated so that the answer starts after the last token."""
    values: torch.Tensor = field(repr=False)
    """``[layers, tokens, kv_heads, head_dim]``"""
    end_ids: frozenset[int]
    """Token ids that end an answer."""
    key: str = field(default_factory=lambda: token_hex(32), repr=False)
    """Names its file: 64 random hex digits."""

    @contextmanager
    def saved(self, folder: str | os.PathLike[str]) -> Iterator[Path]:
        """Write a file in ``folder`` that only its owner can read, and delete it when the context ends."""
        file = Path(folder) / f"{self.key}.safetensors"
        tensors = {"token_ids": torch.tensor(self.token_ids), "keys": self.keys, "values": self.values}
        try:
            file.touch(0o600)
            file.write_bytes(safetensors.torch.save(tensors))
            yield file
        finally:
            file.unlink(missing_ok=True)


_OF_OUR_OWN = {"n": 1, "logprobs": False, "repetition_penalty": 1, "grammar": None, "choose": None}
"""Options that other engines cannot apply to a handover, and their neutral values. The penalty counts the prompt."""


def options_of_our_own(options: Mapping[str, Any], method: object) -> list[str]:
    """Return the names of the options, of the answer and its method, that other engines cannot apply."""
    own = [name for name, left_out in _OF_OUR_OWN.items() if (options.get(name) or left_out) != left_out]
    return [*own, "refresh_tokens"] if getattr(method, "must_refresh", False) else own


def require_dense(decoder: Decoder) -> None:
    """Refuse a model whose retained tokens must keep their gaps."""
    if window := next((window for window in decoder.windows if window), None):
        raise ConfigurationError(
            f"handover: layers of {decoder.config.model_type} see a window of {window} tokens, which other engines "
            "count without the gaps of what was dropped; decode here, or take a model without windows"
        )


def hand_over(
    decoder: Decoder, buffer: KVBuffer, prompt_ids: torch.Tensor, first_id: int, end_ids: frozenset[int]
) -> Handover:
    """Return the handover of ``buffer``, the KV retained of ``prompt_ids`` ``[tokens]``, and the first token."""
    layers = range(decoder.num_layers)
    retained = prompt_ids.cpu()[buffer.positions].tolist()
    rotations = decoder.rotation_by(torch.tensor([len(retained) - len(prompt_ids)]))
    # In float32, so that a second rotation does not round again.
    keys = [rotate(buffer.layer(layer)[0].float()) for layer, rotate in zip(layers, rotations, strict=True)]
    values = [buffer.layer(layer)[1] for layer in layers]
    return Handover((*retained, first_id), _dense(keys, decoder.dtype), _dense(values, decoder.dtype), end_ids)


def _dense(states: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Stack layers ``[1, kv_heads, tokens, head_dim]`` into ``[layers, tokens, kv_heads, head_dim]`` on the host."""
    return torch.cat(states).transpose(1, 2).to("cpu", dtype).contiguous()
