"""Which models can be used: first their configuration is checked, then a short run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from samkv_rag.exceptions import UnsupportedModelError
from samkv_rag.model.decoder import CausalPass, Decoder, base_of
from samkv_rag.model.kv_buffer import KVBuffer

_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
_PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")
_PROBE_TOKENS = 24
_PROBE_WINDOW = 8
# Relative to the norm. A wrong rotation differs by about 1, a wrong window by 0.25 to 1.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# LLM.int8 and int8 with dynamic activations round activations too, and the last bit of a hidden state decides how: up
# to 0.08 was measured in float32, where int8 and int4 weights alone stay at 1e-6.
_TOLERANCE_QUANTISED = 0.15


def check_config(model: Any) -> None:
    """Refuse models whose layers cache no keys, or keys that cannot be rotated.

    Raises:
        UnsupportedModelError: with the reason.
    """
    config = model.config
    name = getattr(config, "model_type", type(model).__name__)
    if len(devices := {str(parameter.device) for parameter in model.parameters()}) > 1 or "meta" in devices:
        raise UnsupportedModelError(
            f"{name}: its weights are on {', '.join(sorted(devices))}; the engine keeps a model on one device: load it "
            "with device='cuda:0', quantised if it is too large"
        )
    if hasattr(config, "text_config"):
        raise UnsupportedModelError(f"{name}: the model has several parts; load its language model alone")
    if other := sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES):
        raise UnsupportedModelError(
            f"{name}: it has layers with {', '.join(other)}, whose state cannot be cached chunk by chunk; use "
            "transformers' own generate() on the whole prompt (full prefill)"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = [part for part in (rope, *rope.values()) if isinstance(part, dict) and "rope_type" in part]
    if not ropes:
        raise UnsupportedModelError(f"{name}: it has no rotary positions, by which cached keys are moved")
    for rope in ropes:  # one, or one per kind of layer
        if rope["rope_type"] in ("dynamic", "longrope"):
            raise UnsupportedModelError(
                f"{name}: rope_type is {rope['rope_type']!r}, whose angles depend on the prompt's length, so cached "
                "keys cannot be moved; use a model with default, linear, llama3 or yarn RoPE"
            )
    decoder: Any = base_of(model) if hasattr(model, "get_decoder") else None
    attention = getattr(decoder.layers[0], "self_attn", None) if hasattr(decoder, "layers") else None
    if not (hasattr(attention, "head_dim") and all(hasattr(decoder, part) for part in _PARTS)):
        raise UnsupportedModelError(
            f"{name}: its decoder is not made of embed_tokens, layers of usual attention, norm and rotary_emb"
        )


@torch.inference_mode()
def self_test(decoder: Decoder) -> None:
    """Compare our way of running the model with its own, on a few random tokens, more than its windows hold.

    Raises:
        UnsupportedModelError: with what differs, by how much, and the limit.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(0, decoder.config.vocab_size, (1, _PROBE_TOKENS), generator=generator)
    try:
        with _short_windows(decoder.model):
            _compare_forward(decoder, probe)
        _compare_rotated(decoder, probe)
    except UnsupportedModelError:
        raise
    except Exception as error:  # including those of kernels that do not run here
        raise UnsupportedModelError(
            f"{decoder.config.model_type}: its layers cannot be run one by one ({type(error).__name__}: {error}) on "
            f"{decoder.device}; this architecture, or this format of weights there, cannot be used"
        ) from error


@contextmanager
def _short_windows(model: Any) -> Iterator[None]:
    """Shorten the model's windows, if it has any, to ``_PROBE_WINDOW`` tokens."""
    owners = [model.config, base_of(model).config, *(layer.self_attn for layer in base_of(model).layers)]
    windows = [(owner, owner.sliding_window) for owner in owners if getattr(owner, "sliding_window", None)]
    try:
        for owner, _ in windows:
            owner.sliding_window = _PROBE_WINDOW
        yield
    finally:
        for owner, window in windows:
            owner.sliding_window = window


def _compare_forward(decoder: Decoder, probe: torch.Tensor) -> None:
    """Compare a prompt run in two parts, the second over the first's cache, with one direct forward."""
    expected = decoder.model(probe.to(decoder.device), use_cache=False).logits[:, -1]
    buffer, half = KVBuffer(decoder.num_layers), _PROBE_TOKENS // 2
    for part in (slice(0, half), slice(half, _PROBE_TOKENS)):
        positions = torch.arange(part.start, part.stop)
        hidden = decoder.run_layers(decoder.embed(probe[:, part]), positions, CausalPass(buffer, positions))
    is_quantised = getattr(decoder.config, "quantization_config", None) is not None
    limit = _TOLERANCE_QUANTISED if is_quantised else _TOLERANCE.get(decoder.dtype, 5e-2)
    _require_close(decoder, "logits of a run layer by layer", decoder.logits(hidden)[:, -1], expected, limit)


def _compare_rotated(decoder: Decoder, probe: torch.Tensor) -> None:
    """Compare keys computed at position 0 and rotated to the context window's end with keys computed there."""
    here = torch.arange(_PROBE_TOKENS)
    offset = decoder.context_window - _PROBE_TOKENS
    rotate = decoder.rotation_by(torch.full((_PROBE_TOKENS,), offset))
    hidden = decoder.embed(probe)  # both runs get the same input in each layer, so rounding does not add up
    for layer in range(decoder.num_layers):
        expected, _ = decoder.project(hidden, here + offset, layer)
        keys, _ = decoder.project(hidden, here, layer)
        hidden = decoder.run_layers(hidden, here, CausalPass(KVBuffer(decoder.num_layers), here), [layer])
        what = f"keys of layer {layer} rotated by {offset} positions"
        _require_close(decoder, what, rotate[layer](keys), expected, _TOLERANCE.get(decoder.dtype, 5e-2))


def _require_close(decoder: Decoder, what: str, found: torch.Tensor, expected: torch.Tensor, limit: float) -> None:
    difference = float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6))
    if not difference <= limit:
        raise UnsupportedModelError(
            f"{decoder.config.model_type}: self-test failed, {what} differ by {difference:.2g} of their norm "
            f"(limit {limit:g} in {decoder.dtype}); this architecture cannot be used"
        )
