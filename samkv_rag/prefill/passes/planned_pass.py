"""A forward pass that follows a plan: at each layer, read cached KV, attend, retain some of it, drop the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch

from samkv_rag.chunk_cache import ChunkCache
from samkv_rag.model.attention import LayerSpec, causal_attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.openmp import compute_alone
from samkv_rag.prefill.passes.plan import Plan

KV = tuple[torch.Tensor, torch.Tensor]
Observer = Callable[[int, torch.Tensor, torch.Tensor, LayerSpec], None]
"""Watches a pass, ``observer(layer, query, keys, spec)``.

``query`` is ``[batch, heads, rows, head_dim]``, ``keys`` ``[batch, kv_heads, columns, head_dim]``.
"""


class TextStates(NamedTuple):
    """What a pass computed of a prompt's text."""

    kv: Sequence[KV]
    """Of each layer from the bottom, each ``[1, kv_heads, rows, head_dim]``"""
    hidden: torch.Tensor
    """``[1, rows, hidden]``, after these layers"""


@dataclass
class PlannedPass:
    """Attention of a pass that follows ``plan``.

    It holds keys and values, ``[batch, kv_heads, columns, head_dim]``, of one layer and of the next one in ``layers``
    (None: all) at a time, and appends the retained ones to ``buffer``. With ``fusion_theta`` it mixes recomputed KV
    with the cached. A layer's KV in ``fresh``, of all columns, replaces the cached. ``text`` are the columns of text
    that the plan does not compute, and its KV. The rows' own KV is added to ``computed``, layer by layer.
    """

    decoder: Decoder
    plan: Plan
    buffer: KVBuffer | None = None
    observer: Observer | None = None
    fusion_theta: float | None = None
    layers: Sequence[int] | None = None
    fresh: Mapping[int, KV] = field(default_factory=dict)
    text: tuple[torch.Tensor, Sequence[KV]] | None = None
    computed: list[KV] | None = None

    def __post_init__(self) -> None:
        self._read_cached = LayerReader(self.decoder, self.plan, self.layers)
        if self.buffer is not None:
            self.buffer.positions = self.plan.retained_positions

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        if self.computed is not None:
            self.computed.append((key, value))
        states = self._assemble(layer, key, value)
        retained = self._retain(layer, states)
        if self.observer is not None:
            self.observer(layer, query, states[0], spec)
        output = torch.empty_like(query)
        for group in self.plan.groups:
            keys, values = retained if group.columns is None else (state[:, :, group.columns] for state in states)
            rows = query[:, :, group.rows]
            output[:, :, group.rows] = causal_attention(rows, keys, values, spec, group.visibility)
        return output

    def run(self) -> torch.Tensor:
        """Run the plan's rows through the layers of the pass, from layer 0; return ``[1, rows, hidden]``."""
        hidden = self.decoder.embed(self.plan.row_ids[None])
        return self.decoder.run_layers(hidden, self.plan.row_positions, self, self.layers)

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Retain a layer's KV as a call would, with rows computed elsewhere, but without attention."""
        self._retain(layer, self._assemble(layer, key, value))

    def _assemble(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> KV:
        """Return all columns' keys and values: the cached ones, overwritten by the computed rows."""
        states, columns = self.fresh.get(layer) or self._read_cached(layer), self.plan.row_columns
        for cached, computed in zip(states, (key, value), strict=True):
            if self.fusion_theta is not None:
                computed = fuse(computed, cached[:, :, columns], self.plan.row_is_chunk, self.fusion_theta)
            cached.index_copy_(2, columns, computed)
        if self.text is not None:
            text_columns, text_kv = self.text
            for cached, known in zip(states, text_kv[layer], strict=True):
                cached.index_copy_(2, text_columns, known)
        return states

    def _retain(self, layer: int, states: KV) -> KV:
        """Append the retained columns to the buffer and return them."""
        keys, values = states
        columns = self.plan.retained_columns
        if columns is not None:
            keys, values = keys.index_select(2, columns), values.index_select(2, columns)
        if self.buffer is not None:
            self.buffer.append(layer, keys, values)
        return keys, values


def fuse(recomputed: torch.Tensor, cached: torch.Tensor, is_chunk: torch.Tensor, theta: float) -> torch.Tensor:
    """Return θ·recomputed + (1−θ)·cached for chunk tokens, and the recomputed alone for text.

    Source: SamKV (arXiv 2508.11661), selective recomputation. ``recomputed`` and ``cached`` are
    ``[batch, kv_heads, tokens, head_dim]``, ``is_chunk`` is ``[tokens]``.
    """
    weight = torch.where(is_chunk, theta, 1.0).to(recomputed.dtype)[:, None]
    # Text has no cached KV: its columns hold another layer's values, which must not leak in.
    return weight * recomputed + torch.where(is_chunk[:, None], (1 - weight) * cached, 0)


class LayerReader:
    """Reads a plan's cached KV, one layer at a time, rotated to its place in the prompt.

    While one layer is used, a thread reads the next of ``layers`` (None: all). Columns without a source contain
    another layer's values. ``keys_only``, for plans that read whole segments, returns the keys twice.
    """

    def __init__(
        self, decoder: Decoder, plan: Plan, layers: Sequence[int] | None = None, keys_only: bool = False
    ) -> None:
        self._sources = plan.sources
        self._device = decoder.device
        self._rotate = decoder.rotation_by(plan.rotate_offsets)
        self._rotates = any(source.offset for source in plan.sources)  # a prefix alone is where it was computed
        layers = range(decoder.num_layers) if layers is None else layers
        self._following = dict(pairwise(layers))
        # KV that was just computed is in memory and needs no thread.
        is_stored = any(not isinstance(source.reader, ChunkCache) for source in plan.sources)
        on_cuda = decoder.device.type == "cuda"
        alone = None if on_cuda else compute_alone  # which leaves the cores to the computing thread
        self._thread = ThreadPoolExecutor(1, "samkv-layer", alone) if is_stored and len(layers) > 1 else None
        self._ahead: tuple[int, Future[torch.Tensor]] | None = None

        # One slot is filled while the other is used or copied. For CUDA they are page-locked: a layer is uploaded in
        # one copy, and the host does not wait for it. Zeros, because NaNs would spread from behind a mask.
        shape = (1 if keys_only else 2, 1, decoder.num_kv_heads, len(plan.rotate_offsets), decoder.head_dim)
        num_slots = 2 if on_cuda or self._thread else 1
        self._slots = [torch.zeros(shape, dtype=decoder.dtype, pin_memory=on_cuda) for _ in range(num_slots)]
        self._uploads = [torch.cuda.Event() for _ in self._slots] if on_cuda else []  # type: ignore[no-untyped-call]
        self._current = 0

    def __call__(self, layer: int) -> KV:
        """Return keys and values, each ``[1, kv_heads, columns, head_dim]``, which the caller may overwrite."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] != layer:
            ahead[1].exception()  # wait for it: the slots take turns
            ahead = None
        slot = self._read(layer) if ahead is None else ahead[1].result()
        states = slot.to(self._device, non_blocking=True)
        if self._uploads:
            self._uploads[self._current].record()
        if self._thread is not None and (following := self._following.get(layer)) is not None:
            self._ahead = following, self._thread.submit(self._read, following)
        return (self._rotate[layer](states[0]) if self._rotates else states[0]), states[-1]

    def _read(self, layer: int) -> torch.Tensor:
        """Read one layer of all sources into the next slot, ``[2, 1, kv_heads, columns, head_dim]``, on the host."""
        self._current = (self._current + 1) % len(self._slots)
        if self._uploads:
            self._uploads[self._current].synchronize()
        states = self._slots[self._current]
        with torch.inference_mode():  # per thread
            for source in self._sources:
                if source.tokens is None:
                    keys, *values = states[:, 0, :, source.columns]
                    source.reader.fill_layer(layer, keys, values[0] if values else None)
                else:
                    for own, cached in zip(states[:, 0], source.reader.layer(layer, source.tokens), strict=True):
                        own[:, source.columns] = cached
        return states
