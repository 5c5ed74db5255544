"""A forward pass over a plan: at each layer, read its cached KV, attend, keep what stays, let go."""

from __future__ import annotations

from typing import Protocol

import torch

from samkv_rag.model.attention import attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.fusion import fuse
from samkv_rag.sparse.plan import Plan
from samkv_rag.sparse.reading import LayerReader


class Observer(Protocol):
    """Watches a pass's attention."""

    def __call__(self, layer: int, query: torch.Tensor, keys: torch.Tensor, scaling: float, /) -> None:
        """``query`` ``[batch, heads, rows, head_dim]``, ``keys`` ``[batch, kv_heads, columns, head_dim]``."""


class PlannedPass:
    """Attention of a pass that follows ``plan``.

    One layer's keys and values, ``[batch, kv_heads, columns, head_dim]``, are all that it holds at a
    time; the kept ones are appended to ``buffer``.
    """

    def __init__(
        self,
        decoder: Decoder,
        plan: Plan,
        buffer: KVBuffer | None = None,
        observer: Observer | None = None,
        fusion_theta: float | None = None,
    ) -> None:
        self._plan = plan
        self._buffer = buffer
        self._observer = observer
        self._fusion_theta = fusion_theta
        # Additive masks, made once: SDPA would turn a boolean one into this at every layer.
        self._masks = [_additive(group.mask, decoder.dtype) for group in plan.groups]
        self._read_cached = LayerReader(decoder, plan)

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        keys, values = self._assemble(layer, key, value)
        kept_keys, kept_values = self._keep(layer, keys, values)
        if self._observer is not None:
            self._observer(layer, query, keys, scaling)
        output = torch.empty_like(query)
        for group, mask in zip(self._plan.groups, self._masks, strict=True):
            seen = (kept_keys, kept_values) if group.columns is None else _columns(group.columns, keys, values)
            output[:, :, group.rows] = attention(query[:, :, group.rows], *seen, scaling, mask, is_causal=mask is None)
        return output

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep a layer as a call would, with rows computed elsewhere, and attend to nothing."""
        self._keep(layer, *self._assemble(layer, key, value))

    def _assemble(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._read_cached(layer)
        self._write_computed(keys, values, key, value)
        return keys, values

    def _keep(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the kept columns to the buffer and return them."""
        columns = self._plan.kept_columns
        if columns is not None:
            keys, values = keys.index_select(2, columns), values.index_select(2, columns)
        if self._buffer is not None:
            self._buffer.append(layer, keys, values)
        return keys, values

    def _write_computed(self, keys: torch.Tensor, values: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        columns = self._plan.row_columns
        if self._fusion_theta is not None:
            key = fuse(key, keys[:, :, columns], self._plan.row_is_chunk, self._fusion_theta)
            value = fuse(value, values[:, :, columns], self._plan.row_is_chunk, self._fusion_theta)
        keys.index_copy_(2, columns, key)
        values.index_copy_(2, columns, value)


def _columns(
    columns: slice | torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return keys[:, :, columns], values[:, :, columns]


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
