"""Weights packed as the processor multiplies by them: decoding on a CPU takes about half the time.

oneDNN multiplies by blocks of a matrix. From plain weights it makes the blocks anew for every product, which takes
as long as a product of a few rows itself. Results are the same, up to rounding.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import nn

_TYPICAL_ROWS = 64
"""Blocks for so many rows serve a single row as well, and several hundred on AMX 1.3 times as fast as its own."""


class PackedLinear(nn.Module):
    """A linear layer of bfloat16 with packed weights; ``weight`` and ``state_dict`` unpack them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TYPICAL_ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """``[out_features, in_features]``, a copy."""
        plain: torch.Tensor = self._packed.to_dense()
        return plain

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``rows`` ``[..., in_features]`` times the weights, ``[..., out_features]``."""
        if not rows.numel():
            return rows.new_empty(*rows.shape[:-1], self.out_features)
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return output

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


def pack_linears(model: Any) -> None:
    """Replace the linear layers of a bfloat16 model on a CPU, as far as torch can pack them; others stay as they are.

    An output layer that shares its weights with the embeddings gets a packed copy. Embeddings need the plain ones, but
    only a few rows of them, which stay in the model's file if they were loaded from safetensors.
    """
    if model.device.type != "cpu" or not can_pack():
        return
    # By name, so that the plain weights of one layer are freed before the next is packed.
    for name in [name for name, module in model.named_modules() if _is_plain(module)]:
        parent, _, own = name.rpartition(".")
        place = model.get_submodule(parent)
        setattr(place, own, PackedLinear(getattr(place, own)))


def can_pack() -> bool:
    """Return whether torch packs bfloat16 for this processor; builds without oneDNN lack the operators."""
    mkldnn: Any = torch.backends.mkldnn
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return bool(is_x86 and mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_plain(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or hasattr(module, "_hf_hook"):
        return False
    return type(module.weight) is nn.Parameter and module.weight.dtype == torch.bfloat16
