"""Turning cached keys to another position.

RoPE is relative: a key computed at position p becomes the key at p + offset by one more rotation
with the angles of ``offset``. So a chunk's keys are kept as computed at positions 0..n-1 and
turned once, by a constant, when the chunk's place in the prompt is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Turn:
    """A rotation per token: cosines and sines, each ``[tokens, rotary_dim]`` in float32."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Turn ``states`` ``[..., tokens, head_dim]`` (keys or queries after RoPE).

        Computed in float32 whatever the dtype: a bfloat16 rotation on top of the model's own would
        round the keys twice. Dimensions past ``rotary_dim`` (partial RoPE) pass through.
        """
        rotary_dim = self.cos.shape[-1]
        turned, rest = states[..., :rotary_dim].float(), states[..., rotary_dim:]
        first, second = turned.chunk(2, dim=-1)
        rotated = torch.cat((-second, first), dim=-1)
        turned = (turned * self.cos + rotated * self.sin).to(states.dtype)
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def turn_by(rotary: torch.nn.Module, offsets: torch.Tensor) -> Turn:
    """Build the rotation by ``offsets`` ``[tokens]``, in positions, from a model's rotary module.

    The module's attention factor (yarn) already scales the cached keys, so it is divided out.
    """
    probe = torch.zeros(1, dtype=torch.float32, device=offsets.device)
    cos, sin = rotary(probe, offsets[None])
    factor = float(getattr(rotary, "attention_scaling", 1.0))
    return Turn(cos[0].float() / factor, sin[0].float() / factor)
