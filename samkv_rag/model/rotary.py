"""Rotating cached keys to another position.

RoPE is relative: rotating a key of position p once more, by the angles of ``offset``, gives the key of position
p + offset. So a chunk's keys are stored as computed, right after the preamble, and rotated once, by a constant,
when the chunk's place in the prompt is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class Rotation:
    """A rotation per token: cosines and sines of its angles, each ``[tokens, rotary_dim / 2]``.

    It computes in their dtype, the model's, as the model's own RoPE does: in bfloat16 twice as fast as in float32.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    of_neighbours: bool = False
    """RoPE pairs dimension 2i with 2i + 1 (Cohere, Llama 4) instead of i with i + rotary_dim / 2."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return ``states`` ``[..., tokens, head_dim]`` (keys or queries after RoPE) rotated, in a new tensor.

        Dimensions past ``rotary_dim`` (partial RoPE) pass through.
        """
        half = self.cos.shape[-1]
        cos, sin = self.cos, self.sin
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
    """Attribute of the model's rotary module that has the angles of one position, ``[rotary_dim / 2]``."""
    of_neighbours: bool = False

    def by(self, rotary: torch.nn.Module, offsets: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation by ``offsets`` ``[tokens]`` positions. Cached keys already include yarn's factor."""
        angles = offsets.float()[:, None] * getattr(rotary, self.frequencies).float()
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), self.of_neighbours)
