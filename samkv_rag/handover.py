"""A finished prefill, handed to another engine that decodes from it.

Attention sees differences of positions only. So the K tokens retained of a prompt of T need not keep the gaps between
them: with every cached key rotated by K − T, an engine whose prompt is the K tokens decodes from position K on what
would be decoded from T. Early tokens get negative positions, which harm nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

import safetensors.torch
import torch

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer


@dataclass(frozen=True)
class Handover:
    """What an answer is decoded from by another engine.

    Its prompt is ``token_ids``. It takes the KV of all of them but the last, which it computes.
    """

    token_ids: tuple[int, ...]
    """The prompt's retained tokens, then the answer's first."""
    keys: torch.Tensor = field(repr=False)
    """``[layers, tokens, kv_heads, head_dim]``, after RoPE at positions 0, 1, ... as seen from the answer."""
    values: torch.Tensor = field(repr=False)
    """``[layers, tokens, kv_heads, head_dim]``"""
    end_ids: frozenset[int]
    """Token ids that end an answer."""

    def save(self, folder: str | os.PathLike[str]) -> str:
        """Write it into ``folder``, for its owner alone, and return the key that names it: 64 random hex digits.

        The file is the caller's to delete, once the answer is decoded (:func:`handover_file`).
        """
        key, token_ids = token_hex(32), torch.tensor(self.token_ids)
        data = safetensors.torch.save({"token_ids": token_ids, "keys": self.keys, "values": self.values})
        with os.fdopen(os.open(handover_file(folder, key), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(data)
        return key


def handover_file(folder: str | os.PathLike[str], key: str) -> Path:
    """Where the handover ``key`` lies in ``folder``."""
    return Path(folder) / f"{key}.safetensors"


def require_dense(decoder: Decoder) -> None:
    """Let a model pass whose retained tokens may close up.

    Raises:
        ConfigurationError: layers see a window, which another engine would count in tokens without the gaps.
    """
    if window := next((window for window in decoder.windows if window), None):
        raise ConfigurationError(
            f"handover: layers of {decoder.config.model_type} see a window of {window} tokens, which other engines count "
            "without the gaps of what was dropped; decode here, or take a model without windows"
        )


def hand_over(
    decoder: Decoder, buffer: KVBuffer, prompt_ids: torch.Tensor, first_id: int, end_ids: frozenset[int]
) -> Handover:
    """What decodes behind ``buffer``, which holds the retained of ``prompt_ids`` ``[tokens]``, and the first token."""
    layers = range(decoder.num_layers)
    retained = prompt_ids.cpu()[buffer.positions].tolist()
    rotations = decoder.rotation_by(torch.tensor([len(retained) - len(prompt_ids)]))
    # In float32: whoever decodes sees the cached keys' rounding and none of a second rotation's.
    keys = [rotate(buffer.layer(layer)[0].float()) for layer, rotate in zip(layers, rotations, strict=True)]
    dense = (
        torch.cat(states).transpose(1, 2).to("cpu", decoder.dtype).contiguous()
        for states in (keys, [buffer.layer(layer)[1] for layer in layers])
    )
    return Handover((*retained, first_id), *dense, end_ids)
