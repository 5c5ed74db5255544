"""Reading a plan's cached KV, one layer at a time, turned to where it stands in the prompt."""

from __future__ import annotations

import torch

from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.plan import Plan


class LayerReader:
    """Brings one layer of all sources into the plan's columns; it never holds more than that.

    Columns that no source fills hold leftovers of other layers: the pass writes what it computes there.
    """

    def __init__(self, decoder: Decoder, plan: Plan) -> None:
        self._sources = plan.sources
        self._device = decoder.device
        self._turn = decoder.turn_by(plan.turn_offsets)
        # Nothing is turned where the prompt's beginning alone is read: it stands where it was computed.
        self._turns = any(source.offset for source in plan.sources)
        shape = (2, 1, decoder.num_kv_heads, len(plan.positions), decoder.head_dim)
        self._staging = _PinnedStaging(shape, decoder.dtype) if decoder.device.type == "cuda" else None
        # Zeros, not empty: stray NaNs behind a mask would still spread through attention's values.
        self._states = torch.zeros(shape if self._staging is None else (0,), dtype=decoder.dtype)

    def __call__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each ``[1, kv_heads, columns, head_dim]``, to be overwritten by the caller at will."""
        if self._staging is None:
            self.assemble(self._states, layer)
            keys, values = self._states.to(self._device)
        else:
            slot = self._staging.next_slot()
            self.assemble(slot, layer)
            keys, values = self._staging.upload(slot, self._device)
        return (self._turn(keys) if self._turns else keys), values

    def assemble(self, states: torch.Tensor, layer: int) -> None:
        """Read one layer of all sources into ``states`` ``[2, 1, kv_heads, columns, head_dim]``, on the host."""
        keys, values = states[:, 0]
        for source in self._sources:
            if source.tokens is None and isinstance(source.columns, slice):
                source.reader.fill_layer(layer, keys[:, source.columns], values[:, source.columns])
                continue
            for own, cached in zip((keys, values), source.reader.layer(layer), strict=True):
                own[:, source.columns] = cached if source.tokens is None else cached.index_select(1, source.tokens)


class _PinnedStaging:
    """Page-locked memory: a layer reaches a CUDA device in one copy for which the host does not wait.

    Two slots in turn, so that one is filled while the other is still being copied.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self._slots = [torch.zeros(shape, dtype=dtype, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0

    def next_slot(self) -> torch.Tensor:
        """The slot whose copy was started two layers ago, once that copy is done."""
        self._turn = 1 - self._turn
        self._copied[self._turn].synchronize()
        return self._slots[self._turn]

    def upload(self, slot: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Start the copy of the slot just filled."""
        states = slot.to(device, non_blocking=True)
        self._copied[self._turn].record()
        return states
