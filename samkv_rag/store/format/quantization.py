"""Chunk caches in 8 or 4 bits: keys by channel, values by token, in groups (KIVI, arXiv 2402.02750).

A few channels of the keys are large in every token, so a key shares its scale with the same channel of the
neighbouring tokens; values have no such channels and share theirs within a token. Everything is computed in
float32; scales and zeros are bfloat16, rounded so that no value falls outside the codes.

    keys     int8, int4    x = zero + scale · (code - lowest), groups of tokens
    values   int8          x = scale · code, groups of channels
             int4          x = zero + scale · code, groups of channels
    rows     int8          x = scale · code, groups of channels (hidden states and means)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samkv_rag.exceptions import StoreError

_ROW_GROUP_CHANNELS = 32


@dataclass(frozen=True)
class Quantization:
    """How a ``kv_dtype`` is laid out; part of the file format."""

    bits: int
    key_group_tokens: int
    value_group_channels: int
    """At most; the largest divisor of head_dim up to it is taken."""

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return -128 if self.bits == 8 else 0

    @property
    def num_steps(self) -> int:
        """From the lowest code to the highest."""
        return (1 << self.bits) - 1


QUANTIZATIONS = {"int8": Quantization(8, 64, 64), "int4": Quantization(4, 32, 32)}


@dataclass(frozen=True)
class QuantizedLayer:
    """Keys and values of one layer."""

    codes: torch.Tensor
    """int8: ``[2, kv_heads, tokens, head_dim]``, int8, keys then values; int4: ``[kv_heads, tokens, head_dim]``,
    uint8, the key's code in the low half of each byte and the value's in the high half."""
    key_scales: torch.Tensor
    """``[2, kv_heads, token groups, head_dim]``, bfloat16, scales then zeros"""
    value_scales: torch.Tensor
    """``[1 or 2, kv_heads, tokens, channel groups]``, bfloat16, scales, and zeros with int4"""


def quantize_layer(keys: torch.Tensor, values: torch.Tensor, form: Quantization) -> QuantizedLayer:
    """Quantise keys and values, each ``[kv_heads, tokens, head_dim]``.

    Raises:
        StoreError: a value is not finite.
    """
    key_codes, key_scales = _quantize_keys(keys.float(), form)
    group = _channel_group(values.shape[-1], form.value_group_channels)
    grouped = _grouped(values.float(), group)
    if form.bits == 8:
        value_codes, scales = _symmetric(grouped)
        codes, value_scales = torch.stack((key_codes, value_codes.flatten(-2))), scales[None]
    else:
        value_codes, value_scales = _affine(grouped, -1, form)
        codes = key_codes | value_codes.flatten(-2) << 4
    return QuantizedLayer(codes, key_scales, value_scales.squeeze(-1))


def dequantize_layer(layer: QuantizedLayer, form: Quantization, keys: torch.Tensor, values: torch.Tensor) -> None:
    """Fill ``keys`` and ``values``, each ``[kv_heads, tokens, head_dim]``, of any floating type and strides."""
    if form.bits == 8:
        key_codes, value_codes = layer.codes.float()
    else:
        key_codes, value_codes = (layer.codes & 15).float(), (layer.codes >> 4).float()
    _dequantize_keys(key_codes, layer.key_scales.float(), form)
    keys.copy_(key_codes)
    scales = layer.value_scales.float()[..., None]
    grouped = _grouped(value_codes, value_codes.shape[-1] // scales.shape[-2]).mul_(scales[0])
    if form.bits == 4:
        grouped.add_(scales[1])
    values.copy_(grouped.flatten(-2))


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 codes of ``rows`` ``[..., channels]`` and their scales ``[..., groups]``, bfloat16.

    Raises:
        StoreError: a value is not finite.
    """
    group = _channel_group(rows.shape[-1], _ROW_GROUP_CHANNELS)
    codes, scales = _symmetric(_grouped(rows.float(), group))
    return codes.flatten(-2), scales.squeeze(-1)


def dequantize_rows(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inverse of :func:`quantize_rows`."""
    grouped = _grouped(codes.float(), codes.shape[-1] // scales.shape[-1])
    rows = grouped.mul_(scales.float()[..., None]).view(codes.shape)
    return rows.to(dtype)


def _quantize_keys(keys: torch.Tensor, form: Quantization) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [_affine(group, -2, form) for group in torch.split(keys, form.key_group_tokens, dim=-2)]
    codes, scales = zip(*parts, strict=True)
    return torch.cat(codes, dim=-2), torch.cat(scales, dim=-2)


def _dequantize_keys(codes: torch.Tensor, scales: torch.Tensor, form: Quantization) -> None:
    """In place, and in two calls whatever the length: one for the whole groups, one for what is left."""
    scale, zero = scales[0, ..., None, :], torch.sub(scales[1], scales[0], alpha=form.lowest)[..., None, :]
    num_groups, size = codes.shape[-2] // form.key_group_tokens, form.key_group_tokens
    whole = num_groups * size
    if whole:
        grouped = codes[:, :whole].view(codes.shape[0], num_groups, size, -1)
        torch.addcmul(zero[:, :num_groups], grouped, scale[:, :num_groups], out=grouped)
    if whole < codes.shape[-2]:
        rest = codes[:, whole:]
        torch.addcmul(zero[:, num_groups], rest, scale[:, num_groups], out=rest)


def _affine(group: torch.Tensor, dim: int, form: Quantization) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of ``group``, and its scale and zero stacked; one of each along ``dim``, which stays with length 1."""
    low, high = group.amin(dim, keepdim=True), group.amax(dim, keepdim=True)
    zero = _rounded_down(low)
    scale = _rounded_up((high - zero.float()) / form.num_steps)
    codes = _codes(group - zero.float(), scale, 0, form.num_steps) + form.lowest
    return codes.to(torch.int8 if form.bits == 8 else torch.uint8), torch.stack((scale, zero))


def _symmetric(group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of ``group`` ``[..., channels]`` and its scale ``[..., 1]``."""
    scale = _rounded_up(group.abs().amax(-1, keepdim=True) / 127)
    return _codes(group, scale, -127, 127).to(torch.int8), scale


def _codes(group: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    if not bool(torch.isfinite(scale).all()):
        raise StoreError("the KV holds a value that is not finite, which int8 and int4 cannot; use kv_dtype='auto'")
    divisor = torch.where(scale > 0, scale, 1).float()  # a scale of 0 stands for a group of equal values
    return (group / divisor).round_().clamp_(low, high)


def _grouped(rows: torch.Tensor, size: int) -> torch.Tensor:
    """``[..., channels]`` as ``[..., groups, size]``."""
    return rows.reshape(*rows.shape[:-1], rows.shape[-1] // size, size)


def _rounded_down(values: torch.Tensor) -> torch.Tensor:
    """The largest bfloat16 up to each float32 value."""
    return torch.where(values < 0, -_rounded_up(-values), _cut(values).bfloat16())


def _rounded_up(values: torch.Tensor) -> torch.Tensor:
    """The smallest bfloat16 from each float32 value of at least 0 on."""
    cut = _cut(values)
    return torch.where(cut < values, _cut((cut.view(torch.int32) + 2**16).view(torch.float32)), cut).bfloat16()


def _cut(values: torch.Tensor) -> torch.Tensor:
    """Float32 values without what bfloat16 cannot hold: its bits are the upper half of a float32's."""
    return (values.contiguous().view(torch.int32) >> 16 << 16).view(torch.float32)


def _channel_group(num_channels: int, limit: int) -> int:
    """Channels that share a scale: the largest divisor of ``num_channels`` up to ``limit``."""
    return next(size for size in range(min(limit, num_channels), 0, -1) if num_channels % size == 0)
