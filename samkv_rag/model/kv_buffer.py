"""The KV cache that decoding reads: one tensor per layer, with room for the answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class KVBuffer:
    """Keys and values of the retained tokens, ``[batch, kv_heads, tokens, head_dim]`` a layer.

    Tokens keep their positions in the prompt. A layer with a window may hold only the last tokens.
    """

    def __init__(self, num_layers: int, reserve_tokens: int = 0) -> None:
        self._states: list[torch.Tensor | None] = [None] * num_layers  # [2, batch, kv_heads, room, head_dim]
        self._lengths = [0] * num_layers
        self._reserve_tokens = reserve_tokens
        self.positions = torch.empty(0, dtype=torch.int64)
        """``[tokens]``, rising positions in the prompt, on the host; set by the pass that fills the layers."""

    @property
    def num_layers(self) -> int:
        return len(self._lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held, without the reserved room."""
        held = zip(self._states, self._lengths, strict=True)
        return sum(states[:, :, :, :length].nbytes for states, length in held if states is not None)

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens to a layer, which grows if needed, and return views of everything it holds."""
        states, start = self._states[layer], self._lengths[layer]
        stop = start + key.shape[2]
        if states is None or states.shape[3] < stop:
            room = stop + self._reserve_tokens if states is None else max(stop, states.shape[3] * 3 // 2)
            grown = key.new_empty(2, *key.shape[:2], room, key.shape[3])
            if states is not None:
                grown[:, :, :, :start] = states[:, :, :, :start]
            self._states[layer] = states = grown
        states[0, :, :, start:stop] = key
        states[1, :, :, start:stop] = value
        self._lengths[layer] = stop
        return self.layer(layer)

    def drop_last(self, num_tokens: int) -> None:
        self._lengths = [length - num_tokens for length in self._lengths]
        self.positions = self.positions[: len(self.positions) - num_tokens]

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of a layer's keys and values."""
        states = self._states[layer]
        if states is None:
            raise IndexError(f"layer {layer} holds nothing yet")
        keys, values = states[:, :, :, : self._lengths[layer]]
        return keys, values

    def copy(self) -> KVBuffer:
        buffer = KVBuffer(self.num_layers, self._reserve_tokens)
        buffer.positions = self.positions
        for layer in range(self.num_layers):
            buffer.append(layer, *self.layer(layer))
        return buffer

    def narrow(self, windows: Sequence[int | None]) -> None:
        """Drop what the next token, and so every later one, cannot see through its layer's window."""
        for layer, window in enumerate(windows):
            passed = 0 if window is None else int((self.positions <= self.positions[-1] + 1 - window).sum())
            if passed:
                keys, values = (states[:, :, passed:] for states in self.layer(layer))
                self._states[layer] = None
                self._lengths[layer] = 0
                self.append(layer, keys, values)
