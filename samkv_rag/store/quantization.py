"""Keys and values in 8 bits: keys by channel, values by token, in groups (KIVI, arXiv 2402.02750).

A few channels of the keys are large in every token, so keys share a scale per channel over neighbouring tokens.
Values have no such channels and share a scale within a token. Everything is computed in float32. Scales and zeros are
bfloat16, rounded so that no value falls outside the codes.

    keys     x = zero + scale · (code + 128), groups of 64 tokens
    values   x = scale · code, groups of 64 channels; summaries, too
"""

from __future__ import annotations

import torch

_LOWEST = -128
_NUM_STEPS = 255
KEY_GROUP_TOKENS = 64
_ROW_GROUP_CHANNELS = 64


def quantize_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes of ``keys`` ``[..., tokens, head_dim]``; scales, then zeros ``[2, ..., groups, head_dim]``."""
    parts = [_affine(group) for group in torch.split(keys.float(), KEY_GROUP_TOKENS, dim=-2)]
    codes, scales = (torch.cat(states, dim=-2) for states in zip(*parts, strict=True))
    return codes, scales


def dequantize_keys(codes: torch.Tensor, scales: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
    """Inverse of :func:`quantize_keys`, ``[..., tokens, head_dim]`` in float32.

    With ``tokens`` ``[n]``, ``codes`` has these tokens only; ``scales`` are those of all tokens.
    """
    scale, lowest = scales.float()
    zero = torch.sub(lowest, scale, alpha=_LOWEST)
    if tokens is not None:
        groups = tokens // KEY_GROUP_TOKENS
        return torch.addcmul(zero[..., groups, :], codes.float(), scale[..., groups, :])
    # Pad the last group, so that one call computes all groups in place.
    keys = torch.empty(*codes.shape[:-2], scale.shape[-2] * KEY_GROUP_TOKENS, codes.shape[-1])
    keys[..., : codes.shape[-2], :] = codes
    grouped = torch.unflatten(keys, -2, (-1, KEY_GROUP_TOKENS))
    torch.addcmul(zero[..., None, :], grouped, scale[..., None, :], out=grouped)
    return keys[..., : codes.shape[-2], :]


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes of ``rows`` ``[..., channels]`` and their scales ``[..., groups]``, bfloat16."""
    grouped = torch.unflatten(rows.float(), -1, (num_row_groups(rows.shape[-1]), -1))
    scale = _rounded(grouped.abs().amax(-1, keepdim=True) / 127, torch.inf)
    codes = _codes(grouped, scale, -127, 127).to(torch.int8)
    return codes.flatten(-2), scale.squeeze(-1)


def dequantize_rows(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`quantize_rows`, in float32."""
    rows = codes.float()
    torch.unflatten(rows, -1, (scales.shape[-1], -1)).mul_(scales.float()[..., None])
    return rows


def num_row_groups(num_channels: int) -> int:
    """Return the smallest number of groups of equal size, at most 64 channels each."""
    sizes = range(1, num_channels + 1)
    return next(n for n in sizes if num_channels % n == 0 and num_channels <= n * _ROW_GROUP_CHANNELS)


def _affine(group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes of a group of keys, and the stacked scale and zero of each channel."""
    low, high = group.amin(-2, keepdim=True), group.amax(-2, keepdim=True)
    zero = _rounded(low, -torch.inf)
    scale = _rounded((high - zero.float()) / _NUM_STEPS, torch.inf)
    codes = _codes(group - zero.float(), scale, 0, _NUM_STEPS) + _LOWEST
    return codes.to(torch.int8), torch.stack((scale, zero))


def _codes(group: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    divisor = torch.where(scale > 0, scale, 1).float()  # the scale of equal values is 0
    return (group / divisor).round_().clamp_(low, high)


def _rounded(values: torch.Tensor, towards: float) -> torch.Tensor:
    """Round float32 values to bfloat16 in the direction of ``towards``, an infinity."""
    rounded = values.bfloat16()
    is_past = rounded.float() < values if towards > 0 else rounded.float() > values
    return torch.where(is_past, torch.nextafter(rounded, rounded.new_tensor(towards)), rounded)
