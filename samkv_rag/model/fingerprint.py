"""A digest of everything that changes a cache's keys and values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch

_SAMPLES_PER_TENSOR = 256


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Return a hex digest of the model's weights, dtype and RoPE, and the tokenizer."""
    digest = hashlib.sha256(b"samkv-format-1")
    digest.update(_config_bytes(model.config))
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name, tensor in sorted(model.state_dict().items()):
        for part, stored in _stored(name, tensor):
            digest.update(f"{part}{tuple(stored.shape)}{stored.dtype}".encode())
            digest.update(_weights_digest(stored))
    return digest.hexdigest()


def _stored(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensor, or the codes and scales of a quantised one (torchao), which stays packed."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield from _stored(f"{name}.{part}", getattr(tensor, part))


def _config_bytes(config: Any) -> bytes:
    # Only what changes the arithmetic; with paths and library versions equal models would differ.
    kept = {
        name: value
        for name, value in config.to_dict().items()
        if name.endswith(("_scaling", "_multiplier", "_eps", "_heads", "_theta", "_factor", "_act", "_softcapping"))
        or name in ("model_type", "rope_parameters", "head_dim", "hidden_size", "layer_types", "sliding_window")
        or name in ("query_pre_attn_scalar", "no_rope_layers", "quantization_config")
        or name in ("num_experts_per_tok", "norm_topk_prob", "topk_group")
    }
    return json.dumps(kept, sort_keys=True, default=str).encode()


def _weights_digest(tensor: torch.Tensor) -> bytes:
    """Return a digest of all weights: the wrapped sum of their bit patterns and an ordered sample of them."""
    flat = tensor.detach().reshape(-1)
    bits = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    step = max(1, bits.numel() // _SAMPLES_PER_TENSOR)
    sample = bits[::step].to("cpu", torch.int64)
    total = bits.sum(dtype=torch.int64).to("cpu").reshape(1)
    return bytes(torch.cat((total, sample)).numpy().tobytes())
