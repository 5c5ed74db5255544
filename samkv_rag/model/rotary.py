"""Rotating cached keys to another position.

RoPE is relative: a key computed at position p becomes the key at p + offset by one more rotation
with the angles of ``offset``. So a chunk's keys are kept as computed, right behind the preamble, and
rotated once, by a constant, when the chunk's place in the prompt is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Rotation:
    """A rotation per token: cosines and sines of its angles, each ``[tokens, rotary_dim / 2]``, float32.

    Like the model's own RoPE it is applied in the dtype of what it turns: in bfloat16 twice as fast
    as through float32.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    of_neighbours: bool = False
    """RoPE pairs dimension 2i with 2i + 1 (Cohere, Llama 4) instead of i with i + rotary_dim / 2."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Rotation ``states`` ``[..., tokens, head_dim]`` (keys or queries after RoPE) into new ones.

        Dimensions past ``rotary_dim`` (partial RoPE) pass through.
        """
        half = self.cos.shape[-1]
        cos, sin = self.cos.to(states.dtype), self.sin.to(states.dtype)
        halves = slice(half), slice(half, 2 * half)
        neighbours = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        at_first, at_second = neighbours if self.of_neighbours else halves
        first, second = states[..., at_first], states[..., at_second]
        rotated = torch.empty_like(states)
        torch.addcmul(first * cos, second, sin, value=-1, out=rotated[..., at_first])
        torch.addcmul(second * cos, first, sin, out=rotated[..., at_second])
        rotated[..., 2 * half :] = states[..., 2 * half :]
        return rotated


class Rope(NamedTuple):
    """How a layer rotates."""

    frequencies: str
    """Where the model's rotary module keeps the angles of one position, ``[rotary_dim / 2]``."""
    of_neighbours: bool = False

    def by(self, rotary: torch.nn.Module, offsets: torch.Tensor) -> Rotation:
        """The rotation by ``offsets`` ``[tokens]``, in positions. yarn's factor is in the cached keys already."""
        angles = offsets.float()[:, None] * getattr(rotary, self.frequencies).float()
        return Rotation(angles.cos(), angles.sin(), self.of_neighbours)
