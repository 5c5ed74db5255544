"""Rotating cached keys to another position.

RoPE is relative: a key computed at position p becomes the key at p + offset by one more rotation
with the angles of ``offset``. So a chunk's keys are kept as computed at positions 0..n-1 and
rotated once, by a constant, when the chunk's place in the prompt is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rotation:
    """A rotation per token: cosines and sines of its angles, each ``[tokens, rotary_dim / 2]``, float32.

    Like the model's own RoPE it is applied in the dtype of what it turns: in bfloat16 twice as fast
    as through float32.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Rotation ``states`` ``[..., tokens, head_dim]`` (keys or queries after RoPE) into new ones.

        RoPE pairs dimension i with i + rotary_dim / 2. Dimensions past ``rotary_dim`` (partial RoPE)
        pass through.
        """
        half = self.cos.shape[-1]
        cos, sin = self.cos.to(states.dtype), self.sin.to(states.dtype)
        first, second = states[..., :half], states[..., half : 2 * half]
        rotated = torch.empty_like(states)
        torch.addcmul(first * cos, second, sin, value=-1, out=rotated[..., :half])
        torch.addcmul(second * cos, first, sin, out=rotated[..., half : 2 * half])
        rotated[..., 2 * half :] = states[..., 2 * half :]
        return rotated


def rotation_by(rotary: torch.nn.Module, offsets: torch.Tensor) -> Rotation:
    """Build the rotation by ``offsets`` ``[tokens]``, in positions, from a model's rotary module.

    The module's attention factor (yarn) already scales the cached keys, so it is divided out.
    """
    probe = torch.zeros(1, dtype=torch.float32, device=offsets.device)
    cos, sin = rotary(probe, offsets[None])
    factor = float(getattr(rotary, "attention_scaling", 1.0))
    half = cos.shape[-1] // 2  # transformers repeats every angle for the second half
    return Rotation(cos[0, :, :half].float() / factor, sin[0, :, :half].float() / factor)
