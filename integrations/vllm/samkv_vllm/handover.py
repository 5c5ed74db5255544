"""The file of a handover, and where its KV goes in vLLM's paged cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Load:
    """KV to load into a request's blocks."""

    key: object
    """Names the handover's file; not validated yet."""
    salted: bool
    """Whether the key is also the request's cache_salt, which isolates its blocks in the prefix cache."""
    token_ids: list[int]
    """The request's prompt."""
    block_ids: list[int]
    start: int
    """The blocks already hold the tokens before it."""

    def slots(self, block_size: int) -> torch.Tensor:
        """Slots of the paged cache, ``[tokens]``, for the prompt's tokens from ``start`` to the last but one."""
        positions = torch.arange(self.start, len(self.token_ids) - 1)
        return torch.tensor(self.block_ids)[positions // block_size] * block_size + positions % block_size

    def read(self, folder: Path, num_layers: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values from ``start``, ``[layers, tokens, kv_heads, head_dim]``.

        Raises:
            ValueError, OSError, SafetensorError: no handover has that key, or it is of another prompt or model.
        """
        if not isinstance(self.key, str) or not _KEY.fullmatch(self.key):
            raise ValueError("samkv_key is not 64 hex digits; pass on Handover.key")
        if not self.salted:
            raise ValueError("cache_salt is not samkv_key; without it other requests could reuse this KV")
        with safetensors.safe_open(folder / f"{self.key}.safetensors", "pt") as file:
            if file.get_tensor("token_ids").tolist() != self.token_ids:
                raise ValueError("the prompt's token ids are not the handover's")
            expected = [num_layers, len(self.token_ids) - 1, file.get_slice("keys").get_shape()[2], head_dim]
            if any((shape := file.get_slice(name).get_shape()) != expected for name in ("keys", "values")):
                raise ValueError(f"the handover is of another model: keys or values are {shape}, expected {expected}")
            keys, values = (file.get_slice(name)[:, self.start :] for name in ("keys", "values"))
            return keys, values


def heads(total: int, local: int, rank: int, size: int) -> slice:
    """Return which of ``total`` kv heads a worker with ``local`` heads has; more workers than heads share them."""
    if local != max(1, total // size):
        raise ValueError(f"the handover is of another model: {total} kv heads, {local} in each of {size} workers")
    first = rank * total // size
    return slice(first, first + local)
