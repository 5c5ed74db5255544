"""What samkv_rag hands over, as its file holds it, and where it goes in vLLM's paged cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch

_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Load:
    """KV that a request is to find in its blocks."""

    key: object
    """Names the handover's file; as the request gave it, so anything."""
    salted: bool
    """Whether the request's blocks are kept apart in the prefix cache."""
    token_ids: list[int]
    """The request's prompt."""
    block_ids: list[int]
    start: int
    """Tokens before it are in the blocks already."""

    def slots(self, block_size: int) -> torch.Tensor:
        """Where in the paged cache the tokens go, ``[tokens]``: all of the prompt from ``start`` on but the last."""
        positions = torch.arange(self.start, len(self.token_ids) - 1)
        return torch.tensor(self.block_ids)[positions // block_size] * block_size + positions % block_size

    def blocks(self, block_size: int) -> set[int]:
        """The blocks in which they are."""
        return {slot // block_size for slot in self.slots(block_size).tolist()}

    def read(self, folder: Path, num_layers: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values from ``start`` on, ``[layers, tokens, kv_heads, head_dim]``.

        Raises:
            ValueError, OSError, SafetensorError: there is nothing by that key, or it is of another prompt or model.
        """
        if not isinstance(self.key, str) or not _KEY.fullmatch(self.key):
            raise ValueError("samkv_key is not 64 hex digits; pass on Handover.key")
        if not self.salted:
            raise ValueError("cache_salt is not samkv_key; without it others would find this KV in the prefix cache")
        with safetensors.safe_open(folder / f"{self.key}.safetensors", "pt") as file:
            if file.get_tensor("token_ids").tolist() != self.token_ids:
                raise ValueError("the prompt's token ids are not the handover's")
            held = [num_layers, len(self.token_ids) - 1, file.get_slice("keys").get_shape()[2], head_dim]
            if any((shape := file.get_slice(name).get_shape()) != held for name in ("keys", "values")):
                raise ValueError(f"the handover is of another model: keys or values are {shape}, expected {held}")
            keys, values = (file.get_slice(name)[:, self.start :] for name in ("keys", "values"))
            return keys, values


def heads(total: int, local: int, rank: int, size: int) -> slice:
    """Which of ``total`` kv heads a worker has, which holds ``local``: with more workers than heads some share one."""
    if local != max(1, total // size):
        raise ValueError(f"the handover is of another model: {total} kv heads, {local} in each of {size} workers")
    first = rank * total // size
    return slice(first, first + local)


def layer_number(name: str) -> int:
    """Which layer ``model.layers.7.self_attn.attn`` is of."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def why_not(windows: Sequence[int | None], num_groups: int, context_ranks: int, on_failure: str) -> str:
    """Why this vLLM cannot decode from a handover; empty where it can."""
    if num_groups != 1 or any(windows):
        return "layers see a window, and vLLM counts it without the gaps of what was dropped; take another model"
    if context_ranks != 1:
        return f"decode_context_parallel_size is {context_ranks}; it must be 1"
    if on_failure != "fail":
        return f"kv_load_failure_policy is {on_failure!r}, which would answer without the chunks' KV; it must be 'fail'"
    return ""
