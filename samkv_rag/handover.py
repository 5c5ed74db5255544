"""A finished prefill, handed to another engine that decodes from it.

Attention sees differences of positions only. So the K tokens retained of a prompt of T need not keep the gaps between
them: with every cached key rotated by K − T, an engine whose prompt is the K tokens decodes from position K on what
would be decoded from T.
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
    """What another engine decodes an answer from: its prompt, and the KV of all of it but the last token."""

    token_ids: tuple[int, ...]
    """The prompt's retained tokens, then the answer's first."""
    keys: torch.Tensor = field(repr=False)
    """``[layers, tokens, kv_heads, head_dim]``, after RoPE at positions 0, 1, ... as seen from the answer."""
    values: torch.Tensor = field(repr=False)
    """``[layers, tokens, kv_heads, head_dim]``"""
    end_ids: frozenset[int]
    """Token ids that end an answer."""
    key: str = field(default_factory=lambda: token_hex(32), repr=False)
    """By which its file is found: 64 random hex digits."""

    @contextmanager
    def saved(self, folder: str | os.PathLike[str]) -> Iterator[Path]:
        """Keep it in a file of ``folder``, readable for its owner alone, while the context is open."""
        file = Path(folder) / f"{self.key}.safetensors"
        tensors = {"token_ids": torch.tensor(self.token_ids), "keys": self.keys, "values": self.values}
        try:
            file.touch(0o600)
            file.write_bytes(safetensors.torch.save(tensors))
            yield file
        finally:
            file.unlink(missing_ok=True)


_OF_OUR_OWN = {"n": 1, "logprobs": False, "repetition_penalty": 1, "grammar": None, "choose": None}
"""Options that whoever decodes a handover cannot carry out, and what leaves them out. The penalty counts the prompt."""


def options_of_our_own(options: Mapping[str, Any], method: object) -> list[str]:
    """Names of the answer's ``options``, and its method's, that whoever decodes a handover knows nothing of."""
    own = [name for name, left_out in _OF_OUR_OWN.items() if (options.get(name) or left_out) != left_out]
    return [*own, "refresh_tokens"] if getattr(method, "refresh_tokens", None) else own


def require_dense(decoder: Decoder) -> None:
    """Let a model pass whose retained tokens may close up.

    Raises:
        ConfigurationError: layers see a window, which another engine would count in tokens without the gaps.
    """
    if window := next((window for window in decoder.windows if window), None):
        raise ConfigurationError(
            f"handover: layers of {decoder.config.model_type} see a window of {window} tokens, which other engines "
            "count without the gaps of what was dropped; decode here, or take a model without windows"
        )


def hand_over(
    decoder: Decoder, buffer: KVBuffer, prompt_ids: torch.Tensor, first_id: int, end_ids: frozenset[int]
) -> Handover:
    """What decodes behind ``buffer``, which holds the retained of ``prompt_ids`` ``[tokens]``, and the first token."""
    layers = range(decoder.num_layers)
    retained = prompt_ids.cpu()[buffer.positions].tolist()
    rotations = decoder.rotation_by(torch.tensor([len(retained) - len(prompt_ids)]))
    # In float32, so that another rotation does not round twice.
    keys = [rotate(buffer.layer(layer)[0].float()) for layer, rotate in zip(layers, rotations, strict=True)]
    values = [buffer.layer(layer)[1] for layer in layers]
    return Handover((*retained, first_id), _dense(keys, decoder.dtype), _dense(values, decoder.dtype), end_ids)


def _dense(states: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Layers' states ``[1, kv_heads, tokens, head_dim]`` as ``[layers, tokens, kv_heads, head_dim]`` on the host."""
    return torch.cat(states).transpose(1, 2).to("cpu", dtype).contiguous()
