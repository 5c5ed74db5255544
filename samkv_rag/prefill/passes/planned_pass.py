"""A forward pass over a plan: at each layer, read its cached KV, attend, keep what is retained, let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from samkv_rag.model.attention import LayerSpec, causal_attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill.passes.plan import Group, Plan

_KV = tuple[torch.Tensor, torch.Tensor]


class Observer(Protocol):
    """Watches a pass's attention."""

    def __call__(self, layer: int, query: torch.Tensor, keys: torch.Tensor, spec: LayerSpec, /) -> None:
        """``query`` ``[batch, heads, rows, head_dim]``, ``keys`` ``[batch, kv_heads, columns, head_dim]``."""


class PlannedPass:
    """Attention of a pass that follows ``plan``.

    One layer's keys and values, ``[batch, kv_heads, columns, head_dim]``, are all that it holds at a
    time; the retained ones are appended to ``buffer``. With ``fusion_theta``, recomputed KV is mixed
    with the cached.
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
        self._read_cached = LayerReader(decoder, plan)
        if buffer is not None:
            buffer.positions = plan.retained_positions

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        states = self._assemble(layer, key, value)
        retained = self._retain(layer, states)
        if self._observer is not None:
            self._observer(layer, query, states[0], spec)
        return attend_in_groups(self._plan.groups, query, states, retained, spec)

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep a layer as a call would, with rows computed elsewhere, and attend to nothing."""
        self._retain(layer, self._assemble(layer, key, value))

    def _assemble(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> _KV:
        """All columns' keys and values: the cached ones, with the computed rows written over them."""
        keys, values = self._read_cached(layer)
        columns = self._plan.row_columns
        if self._fusion_theta is not None:
            key = fuse(key, keys[:, :, columns], self._plan.row_is_chunk, self._fusion_theta)
            value = fuse(value, values[:, :, columns], self._plan.row_is_chunk, self._fusion_theta)
        keys.index_copy_(2, columns, key)
        values.index_copy_(2, columns, value)
        return keys, values

    def _retain(self, layer: int, states: _KV) -> _KV:
        """Append the retained columns to the buffer and return them."""
        keys, values = states
        columns = self._plan.retained_columns
        if columns is not None:
            keys, values = keys.index_select(2, columns), values.index_select(2, columns)
        if self._buffer is not None:
            self._buffer.append(layer, keys, values)
        return keys, values


def attend_in_groups(
    groups: Sequence[Group], query: torch.Tensor, states: _KV, retained: _KV, spec: LayerSpec
) -> torch.Tensor:
    """Attention of each group's rows over the columns that it sees, ``[batch, heads, rows, head_dim]``.

    ``states`` are all columns' keys and values, ``retained`` those that stay.
    """
    output = torch.empty_like(query)
    for group in groups:
        keys, values = retained if group.columns is None else (state[:, :, group.columns] for state in states)
        rows = query[:, :, group.rows]
        output[:, :, group.rows] = causal_attention(rows, keys, values, spec, group.visibility)
    return output


def fuse(recomputed: torch.Tensor, cached: torch.Tensor, is_chunk: torch.Tensor, theta: float) -> torch.Tensor:
    """θ·recomputed + (1−θ)·cached for chunk tokens, the recomputed alone for text.

    Source: SamKV (arXiv 2508.11661), selective recomputation. ``recomputed`` and ``cached`` are
    ``[batch, kv_heads, tokens, head_dim]``, ``is_chunk`` is ``[tokens]``.
    """
    weight = torch.where(is_chunk, theta, 1.0).to(recomputed.dtype)[:, None]
    # Text has nothing cached: its columns hold another layer's values, which must not leak in.
    return weight * recomputed + torch.where(is_chunk[:, None], (1 - weight) * cached, 0)


class LayerReader:
    """Reads a plan's cached KV, one layer at a time, rotated to its place in the prompt.

    Columns that no source fills hold leftovers of other layers: the pass writes what it computes there.
    ``keys_only``, which takes whole sources, returns the keys twice.
    """

    def __init__(self, decoder: Decoder, plan: Plan, keys_only: bool = False) -> None:
        self._sources = plan.sources
        self._device = decoder.device
        self._rotate = decoder.rotation_by(plan.rotate_offsets)
        # Nothing is rotated where the prompt's beginning alone is read: it stands where it was computed.
        self._rotates = any(source.offset for source in plan.sources)
        shape = (1 if keys_only else 2, 1, decoder.num_kv_heads, len(plan.positions), decoder.head_dim)
        self._staging = _PinnedStaging(shape, decoder.dtype) if decoder.device.type == "cuda" else None
        # Zeros, not empty: stray NaNs behind a mask would still spread through attention's values.
        self._states = torch.zeros(shape if self._staging is None else (0,), dtype=decoder.dtype)

    def __call__(self, layer: int) -> _KV:
        """Keys and values, each ``[1, kv_heads, columns, head_dim]``, to be overwritten by the caller at will."""
        if self._staging is None:
            self.assemble(self._states, layer)
            states = self._states.to(self._device)
        else:
            slot = self._staging.next_slot()
            self.assemble(slot, layer)
            states = self._staging.upload(slot, self._device)
        return (self._rotate[layer](states[0]) if self._rotates else states[0]), states[-1]

    def assemble(self, states: torch.Tensor, layer: int) -> None:
        """Read one layer of all sources into ``states`` ``[2, 1, kv_heads, columns, head_dim]``, on the host."""
        for source in self._sources:
            if source.tokens is None:
                keys, *values = states[:, 0, :, source.columns]
                source.reader.fill_layer(layer, keys, values[0] if values else None)
            else:
                for own, cached in zip(states[:, 0], source.reader.layer(layer, source.tokens), strict=True):
                    own[:, source.columns] = cached


class _PinnedStaging:
    """Page-locked memory: a layer reaches a CUDA device in one copy for which the host does not wait.

    Two slots take turns, so that one is filled while the other is still being copied.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._slots = [torch.zeros(shape, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._current = 0

    def next_slot(self) -> torch.Tensor:
        """The slot whose copy was started two layers ago, once that copy is done."""
        self._current = 1 - self._current
        self._copied[self._current].synchronize()
        return self._slots[self._current]

    def upload(self, slot: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Start the copy of the slot just filled."""
        states = slot.to(device, non_blocking=True)
        self._copied[self._current].record()
        return states
