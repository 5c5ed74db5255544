"""8 and 4 bits: how far a value may be off, how many bytes it takes, and what the engine does with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from samkv_rag import SamKVConfig, SamKVEngine
from samkv_rag.chunk_cache import ChunkCache, Layout, Means
from samkv_rag.config import KVDtype
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.format.encoding import encode_chunk
from samkv_rag.store.format.quantization import (
    QUANTIZATIONS,
    dequantize_layer,
    dequantize_rows,
    quantize_layer,
    quantize_rows,
)
from samkv_rag.store.format.reading import ChunkBytes

SHAPES = [(1, 1, 4), (2, 63, 24), (2, 64, 64), (3, 65, 80), (1, 130, 96), (2, 32, 7)]
QUANTISED: tuple[KVDtype, ...] = ("int8", "int4")


def draw(kind: str, *shape: int) -> torch.Tensor:
    torch.manual_seed(KINDS.index(kind))
    states = torch.randn(shape)
    if kind == "offset channels":
        return states + torch.linspace(-200, 200, shape[-1])
    if kind == "one outlier":
        states.view(-1)[0] = 3000.0
    if kind == "tiny":
        return states * 1e-30
    if kind == "equal":
        return torch.full(shape, -3.14159)
    return torch.zeros(shape) if kind == "zeros" else states


KINDS = ["normal", "offset channels", "one outlier", "tiny", "equal", "zeros"]


def half_step(group: torch.Tensor, num_steps: int, symmetric: bool, dim: int) -> torch.Tensor:
    """Half a step of a group's range; a scale and a zero in bfloat16 add at most 2**-7 to each."""
    low, high = group.amin(dim, keepdim=True), group.amax(dim, keepdim=True)
    spread = 2 * group.abs().amax(dim, keepdim=True) if symmetric else high - low + low.abs() * 2**-7
    return spread / num_steps / 2 * (1 + 2**-7) * 1.001


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANTISED)
def test_no_value_is_off_by_more_than_half_a_step_of_its_group(name: str, shape: tuple[int, ...], kind: str) -> None:
    form, keys, values = QUANTIZATIONS[name], draw(kind, *shape), draw(kind, *shape)
    found_keys, found_values = torch.empty(shape), torch.empty(shape)
    dequantize_layer(quantize_layer(keys, values, form), form, found_keys, found_values)
    groups = zip(
        torch.split(keys, form.key_group_tokens, 1), torch.split(found_keys, form.key_group_tokens, 1), strict=True
    )
    for group, found in groups:
        # A float32's own rounding where a channel is far from zero and hardly varies.
        slack = group.abs().amax() * 2**-22
        assert ((group - found).abs() <= half_step(group, form.num_steps, False, 1) + slack).all()
    size = max(s for s in range(1, form.value_group_channels + 1) if shape[-1] % s == 0)
    for group, found in zip(torch.split(values, size, 2), torch.split(found_values, size, 2), strict=True):
        steps, symmetric = (254, True) if name == "int8" else (15, False)
        slack = group.abs().amax() * 2**-22
        assert ((group - found).abs() <= half_step(group, steps, symmetric, 2) + slack).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 64), (3, 2, 24), (7, 35), (0, 8), (2, 0, 8)])
def test_rows_keep_an_outlier_to_its_own_group(shape: tuple[int, ...], kind: str) -> None:
    rows = draw(kind, *shape) if torch.Size(shape).numel() else torch.zeros(shape)
    codes, scales = quantize_rows(rows)
    found = dequantize_rows(codes, scales, torch.float32)
    assert found.shape == rows.shape
    size = max(s for s in range(1, 33) if shape[-1] % s == 0)
    for group, back in zip(torch.split(rows, size, -1), torch.split(found, size, -1), strict=True):
        assert ((group - back).abs() <= half_step(group, 254, True, -1)).all()


def test_keys_and_values_are_grouped_their_own_way() -> None:
    """A channel that is large in every token spoils no other key; a token that is large spoils no other value."""
    form, states = QUANTIZATIONS["int4"], torch.randn(1, 64, 32)
    keys, values = states.clone(), states.clone()
    keys[..., 5] += 1000.0
    values[:, 9] *= 1000.0
    found_keys, found_values = torch.empty_like(keys), torch.empty_like(values)
    dequantize_layer(quantize_layer(keys, values, form), form, found_keys, found_values)
    others = [channel for channel in range(32) if channel != 5]
    assert (found_keys - keys)[..., others].abs().max() < 0.5
    assert (found_values - values)[:, [token for token in range(64) if token != 9]].abs().max() < 0.5


@pytest.mark.parametrize(("num_tokens", "limits"), [(500, (0.55, 0.36)), (200, (0.55, 0.36)), (48, (0.55, 0.38))])
def test_files_take_the_share_of_bytes_that_is_promised(num_tokens: int, limits: tuple[float, float]) -> None:
    """Whole files, hidden states, means and header included; Qwen2.5-0.5B's shapes."""
    layers, heads, kv_heads, head_dim = 24, 14, 2, 64
    keys, values = torch.randn(2, layers, kv_heads, num_tokens, head_dim).bfloat16()
    blocks = torch.randn(layers, kv_heads, (num_tokens - 8 + 15) // 16, head_dim)
    means = (blocks, torch.randn(layers, kv_heads, head_dim), torch.randn(layers, heads, head_dim))
    hidden = torch.randn(num_tokens, 896).bfloat16()
    summary = Means(*(mean.bfloat16() for mean in means))
    cache = ChunkCache(torch.arange(num_tokens), keys, values, summary, Layout(4, 4, 16, 6), "f", hidden)
    full = len(encode_chunk(cache, "digest", "bfloat16"))
    for kv_dtype, limit in zip(QUANTISED, limits, strict=True):
        assert len(encode_chunk(cache, "digest", kv_dtype)) <= limit * full


# -- through the engine --------------------------------------------------------------------------

CHUNKS = [tiny.text(seed) for seed in range(3)]


def stored_in(folder: Path) -> set[str]:
    return {ChunkBytes(path.read_bytes()).kv_dtype for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("kv_dtype", ["auto", "bfloat16", "int8", "int4"])
def test_an_engine_stores_in_the_dtype_asked_for_and_reads_it(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path, kv_dtype: str
) -> None:
    make_engine(store=tmp_path, kv_dtype=kv_dtype).add_chunks(CHUNKS)
    assert stored_in(tmp_path) == {"float32" if kv_dtype == "auto" else kv_dtype}
    metrics = make_engine(store=tmp_path).generate(tiny.rag_prompt(CHUNKS), max_new_tokens=4).metrics
    assert (metrics.chunks_hit, metrics.chunks_missed) == (3, 0)


@pytest.mark.parametrize("options", [{}, {"recompute_view": "all"}, {"resume_layer": 0}, {"method": "samkv"}])
def test_eight_bits_keep_nearly_the_same_tokens(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path, options: dict[str, Any]
) -> None:
    kept = {}
    for kv_dtype in ("auto", "int8"):
        engine = make_engine(store=tmp_path / kv_dtype, kv_dtype=kv_dtype, sequence_ratio=0.5, **options)
        engine.add_chunks(CHUNKS)
        uses = engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).chunks
        kept[kv_dtype] = {(number, token) for number, use in enumerate(uses) for token in use.kept_tokens}
    assert len(kept["auto"] & kept["int8"]) >= 0.9 * len(kept["auto"])


def test_a_store_holds_chunks_in_several_dtypes_at_once(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    make_engine(store=tmp_path, kv_dtype="int8").add_chunks(CHUNKS[:2])
    later = make_engine(store=tmp_path, kv_dtype="auto")
    assert later.add_chunks(CHUNKS).num_reused == 2
    assert stored_in(tmp_path) == {"int8", "float32"}
    assert later.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=4).metrics.chunks_hit == 3


def test_a_kv_dtype_is_chosen_once_and_must_be_known(make_engine: Callable[..., SamKVEngine]) -> None:
    with pytest.raises(ConfigurationError, match="kv_dtype is 'int2'; it must be one of 'auto', 'bfloat16'"):
        SamKVConfig(kv_dtype="int2")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="unknown option kv_dtype"):
        make_engine().generate(tiny.rag_prompt(CHUNKS), kv_dtype="int8")


def test_a_kv_dtype_that_the_model_cannot_have_is_refused_before_anything_is_computed() -> None:
    model = tiny.model("llama", dtype=torch.float16)
    with pytest.raises(ConfigurationError, match="the model computes in float16"):
        SamKVEngine.from_pretrained(model, tokenizer=tiny.tokenizer(), config=SamKVConfig(kv_dtype="bfloat16"))
