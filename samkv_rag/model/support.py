"""Which models can be used: checked by their configuration, then by a short run."""

from __future__ import annotations

from typing import Any

import torch

from samkv_rag.exceptions import UnsupportedModelError
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_PROBE_TOKENS = 24
# Relative to the norm. A wrong rotation differs by about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def check_config(model: Any) -> None:
    """Refuse models whose cached keys cannot be rotated or whose attention does not see everything.

    Raises:
        UnsupportedModelError: with the reason and, where there is one, the remedy.
    """
    config = model.config
    name = getattr(config, "model_type", type(model).__name__)
    if hasattr(config, "text_config"):
        raise UnsupportedModelError(f"{name}: a model of several parts; load its language model alone")
    if reason := _sliding_window(config):
        raise UnsupportedModelError(f"{name}: {reason}")
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict) or "rope_type" not in rope:
        raise UnsupportedModelError(f"{name}: it has no rotary positions, by which cached keys are moved")
    if rope["rope_type"] in _LENGTH_DEPENDENT_ROPE:
        raise UnsupportedModelError(
            f"{name}: rope_type is {rope['rope_type']!r}, whose angles depend on the prompt's length, so cached "
            "keys cannot be moved; use a model with default, linear, llama3 or yarn RoPE"
        )
    if not hasattr(model, "get_decoder") or not _has_parts(model.get_decoder()):
        raise UnsupportedModelError(f"{name}: its decoder is not made of embed_tokens, layers, norm and rotary_emb")


def _sliding_window(config: Any) -> str | None:
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None:
        other = sorted(set(layer_types) - {"full_attention"})
        return f"it has layers with {', '.join(other)}; every layer must see the whole prompt" if other else None
    window = getattr(config, "sliding_window", None)
    if window is None or window >= config.max_position_embeddings:
        return None
    return (
        f"its attention sees only the last {window} tokens (sliding_window); load it with sliding_window=None "
        f"if your prompts stay under {window} tokens"
    )


def _has_parts(decoder: Any) -> bool:
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    return all(hasattr(decoder, part) for part in parts) and hasattr(decoder.layers[0], "self_attn")


@torch.inference_mode()
def self_test(decoder: Decoder) -> None:
    """Compare our way of running the model with its own, on a probe of a few random tokens.

    Raises:
        UnsupportedModelError: naming what differs, by how much, and the limit.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(0, decoder.config.vocab_size, (1, _PROBE_TOKENS), generator=generator)
    _compare_forward(decoder, probe)
    _compare_rotated(decoder, probe)


def _compare_forward(decoder: Decoder, probe: torch.Tensor) -> None:
    """A prompt run in two parts, the second over the first's cache, against one direct forward."""
    expected = decoder.model(probe.to(decoder.device), use_cache=False).logits[:, -1]
    buffer, half = KVBuffer(decoder.num_layers), _PROBE_TOKENS // 2
    for part in (slice(0, half), slice(half, _PROBE_TOKENS)):
        positions = torch.arange(part.start, part.stop)
        hidden = decoder.run_layers(decoder.embed(probe[:, part]), positions, CausalPass(buffer))
    _require_close(decoder, "logits of a run layer by layer", decoder.logits(hidden)[:, -1], expected)


def _compare_rotated(decoder: Decoder, probe: torch.Tensor) -> None:
    """Keys computed at position 0 and rotated to the window's end against keys computed there.

    Layer by layer from the same hidden states, so that rounding does not pile up over the layers.
    """
    here = torch.arange(_PROBE_TOKENS)
    offset = decoder.context_window - _PROBE_TOKENS
    rotate = decoder.rotation_by(torch.full((_PROBE_TOKENS,), offset))
    hidden = decoder.embed(probe)
    for layer in range(decoder.num_layers):
        _, expected = _run_layer(decoder, hidden, here + offset, layer)
        hidden, keys = _run_layer(decoder, hidden, here, layer)
        _require_close(decoder, f"keys of layer {layer} rotated by {offset} positions", rotate(keys), expected)


def _run_layer(
    decoder: Decoder, hidden: torch.Tensor, position_ids: torch.Tensor, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states behind ``layer`` and the keys it computed."""
    buffer = KVBuffer(decoder.num_layers)
    behind = decoder.run_layers(hidden, position_ids, CausalPass(buffer), [layer])
    return behind, buffer.layer(layer)[0]


def _require_close(decoder: Decoder, what: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    difference = float((found.float() - expected.float()).norm() / expected.float().norm().clamp(min=1e-6))
    limit = _TOLERANCE.get(decoder.dtype, 5e-2)
    if not difference <= limit:
        raise UnsupportedModelError(
            f"{decoder.config.model_type}: self-test failed, {what} differ by {difference:.2g} of their norm "
            f"(limit {limit:g} in {decoder.dtype}); this architecture cannot be used"
        )
