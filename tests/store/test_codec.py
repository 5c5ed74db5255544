"""Chunk files, full or as an index: exact and checked, also in int8; forged files are not trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch

from samkv_rag.chunk_cache import ChunkCache, ChunkShape, Summary
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, DamagedChunkWarning, StoreError
from samkv_rag.store import codec
from samkv_rag.store.base import read_bytes
from samkv_rag.store.codec import encode_chunk, stored_dtype
from samkv_rag.store.quantization import dequantize_keys, dequantize_rows, quantize_keys, quantize_rows
from support import tiny
from support.crafting import (
    ABSENT,
    FULL,
    IDENTITY,
    INDEX,
    cache,
    encoded,
    read,
    rewritten,
    verify,
    with_token_ids_of_shape,
)
from support.engines import MakeEngine

CHUNK = tiny.text(1)
PROMPT = tiny.rag_prompt([CHUNK, tiny.text(2)])


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "tolerance"),
    [
        (torch.float32, "float32", 0.0),
        (torch.bfloat16, "auto", 0.0),
        (torch.float16, "auto", 0.0),
        (torch.bfloat16, "int8", 0.04),
    ],
)
def test_reading_returns_what_was_encoded(dtype: torch.dtype, kv_dtype: str, tolerance: float) -> None:
    shape = replace(FULL, dtype=dtype)
    original, data = cache(shape), encoded(kv_dtype, shape)
    chunk = read(data)
    assert chunk.identity == IDENTITY
    assert torch.equal(chunk.token_ids, original.token_ids)
    for layer in range(6):
        torch.testing.assert_close(chunk.layer(layer), original.layer(layer), atol=tolerance, rtol=0)
    torch.testing.assert_close(vars(chunk.summary()), vars(original.means), atol=tolerance, rtol=0)
    verify(chunk, shape, list(range(70)))
    assert kv_dtype != "int8" or len(data) < 0.65 * len(encoded("auto", shape))


@pytest.mark.parametrize("kv_dtype", ["float32", "int8", "bfloat16"])
def test_a_layer_is_read_into_any_place(kv_dtype: str) -> None:
    chunk = read(encoded(kv_dtype))
    expected = chunk.layer(1)
    whole = torch.full((2, 2, 200, 16), torch.nan)
    chunk.fill_layer(1, whole[0, :, 30:100], whole[1, :, 30:100])
    assert torch.equal(whole[:, :, 30:100], torch.stack(expected))
    assert bool(whole[:, :, :30].isnan().all()) and bool(whole[:, :, 100:].isnan().all())
    strided = torch.zeros(2, 70, 16, 2)
    chunk.fill_layer(1, *(strided[..., i] for i in range(2)))
    assert torch.equal(strided.movedim(-1, 0), torch.stack(expected))


@pytest.mark.parametrize(
    ("kv_dtype", "itemsize", "num_scale_bytes"), [("float32", 4, 0), ("bfloat16", 2, 0), ("int8", 1, 536)]
)
@pytest.mark.parametrize("tokens", [[0], [69], [3, 4, 5, 40, 66, 67], list(range(70))])
@pytest.mark.parametrize("page_bytes", [1, 1 << 20])
def test_only_the_wanted_tokens_are_read_if_they_are_far_apart(
    kv_dtype: str,
    itemsize: int,
    num_scale_bytes: int,
    tokens: list[int],
    page_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("samkv_rag.store.codec._PAGE_BYTES", page_bytes)
    chunk = read(encoded(kv_dtype))
    first, whole = chunk.layer(1, torch.tensor(tokens)), chunk.layer(1)  # the first read checks the whole tensor
    before = chunk.bytes_read
    again = chunk.layer(1, torch.tensor(tokens))
    num_read = len(tokens) if page_bytes == 1 else 70
    assert chunk.bytes_read - before == 2 * 2 * num_read * 16 * itemsize + num_scale_bytes
    for once, twice, theirs in zip(first, again, whole, strict=True):
        assert torch.equal(once, theirs[:, tokens])
        assert torch.equal(twice, theirs[:, tokens])
    for _ in range(2):
        for layer, states in enumerate(zip(*chunk.rows(range(6), torch.tensor(tokens)), strict=True)):
            assert all(map(torch.equal, states, chunk.layer(layer, torch.tensor(tokens))))


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_damage_is_found_when_it_is_read(kv_dtype: str) -> None:
    data = bytearray(encoded(kv_dtype))
    data[read(bytes(data)).tensors["layer.001.values"].start] ^= 1
    chunk, tokens = read(bytes(data)), torch.tensor([60])
    chunk.require(FULL, list(range(70)))
    for layer in (0, 2):
        chunk.layer(layer)
    chunk.fill_layer(1, torch.empty(2, 70, 16), None)
    for spoilt in (
        lambda: chunk.layer(1),
        lambda: chunk.rows(range(3), tokens),
        lambda: chunk.layer(1, tokens),  # the damaged byte is another token's, but the checksum covers all
        lambda: chunk.layer_values(1),
        lambda: chunk.fill_layer(1, *torch.empty(2, 2, 70, 16)),
        chunk.verify,
    ):
        with pytest.raises(DamagedChunkError, match=r"the checksum of layer\.001\.values differs"):
            spoilt()


@pytest.mark.parametrize(
    ("kv_dtype", "storage", "golden"),
    [
        ("float32", "full", "ec8df499f157c9c7"),
        ("auto", "full", "775ffa98d280ff4d"),
        ("int8", "full", "f18a0d31e6670ab0"),
        ("auto", "index", "b6d89a438b6294c0"),
        ("bfloat16", "index", "c6bb4e3ac5275841"),
    ],
)
def test_the_format_does_not_change_unnoticed(kv_dtype: str, storage: str, golden: str) -> None:
    """The bytes of a fixed chunk. If the format changes on purpose, raise FORMAT_VERSION."""
    ramp = torch.arange(3 * 2 * 8 * 16).reshape(3, 2, 8, 16) / 64
    means = Summary(ramp[:, :, :1], ramp[:, :, 0], ramp[:, :, 1].repeat(1, 2, 1))
    chunk = ChunkCache(torch.arange(8), ramp, -ramp, means)
    data = encode_chunk(chunk, replace(IDENTITY, num_tokens=8), kv_dtype, storage)
    assert hashlib.sha256(data).hexdigest()[:16] == golden


def test_a_stored_dtype_is_never_larger_than_needed() -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    assert [stored_dtype("auto", dtype) for dtype in dtypes] == ["bfloat16", "bfloat16", "bfloat16", "float16"]
    for kv_dtype, dtype in (("float32", torch.bfloat16), ("bfloat16", torch.float16)):
        with pytest.raises(ConfigurationError, match="use 'auto' or 'int8'"):
            stored_dtype(kv_dtype, dtype)


@pytest.mark.parametrize(("kv_dtype", "shape"), [("auto", FULL), ("int8", INDEX)])
def test_every_flipped_bit_is_found(kv_dtype: str, shape: ChunkShape) -> None:
    identity = replace(IDENTITY, num_tokens=6, suffix="lit at sunset")  # an escape may have capitals
    data = encode_chunk(cache(shape, 6), identity, kv_dtype, shape.spec.storage)
    verify(read(data), shape, list(range(6)))
    for at in range(0, len(data), max(1, len(data) // 600)):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << at % 8
        with pytest.raises(DamagedChunkError):
            verify(read(bytes(spoilt)), shape, list(range(6)))


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 100, b"\0" * 5000, b"{}" * 5000])
def test_other_files_are_damaged_chunks(data: bytes) -> None:
    with pytest.raises(DamagedChunkError):
        read(data)


# Files with correct checksums and wrong contents


def kv(*shape: int, fill: float = 0.0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, fill, dtype=dtype) for name in ("keys", "values")}


FORGED: dict[str, dict[str, torch.Tensor]] = {
    "fewer layers": kv(5, 2, 70, 16),
    "more layers": kv(7, 2, 70, 16),
    "other heads": kv(6, 1, 70, 16),
    "fewer tokens": kv(6, 2, 69, 16),
    "other head_dim": kv(6, 2, 70, 8),
    "other dtype": kv(6, 2, 70, 16, dtype=torch.float64),
    "nan": kv(6, 2, 70, 16, fill=torch.nan),
    "inf": kv(6, 2, 70, 16, fill=torch.inf),
    "ids past the vocabulary": {"token_ids": torch.arange(70) + 500},
    "negative ids": {"token_ids": torch.arange(70) - 1},
    "no ids": {"token_ids": torch.arange(0)},
    "float ids": {"token_ids": torch.arange(70).float()},
    "means of other layers": {"anchor_mean_key": torch.zeros(2, 2, 16)},
    "queries of other heads": {"local_mean_query": torch.zeros(6, 2, 16)},
    "block means of fewer dimensions": {"block_mean_keys": torch.zeros(6, 2)},
    "block means of a block less": {"block_mean_keys": torch.zeros(6, 2, 3, 16)},
    "nan block means": {"block_mean_keys": torch.full((6, 2, 4, 16), torch.nan)},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("token_ids", [list(range(70)), None], ids=["with text", "without"])
def test_a_forged_chunk_is_not_trusted(
    changes: dict[str, Any], token_ids: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache()
    assert original.means is not None
    means = replace(original.means, **{k: v for k, v in changes.items() if k in vars(original.means)})
    forged = replace(original, **{k: v for k, v in changes.items() if k in vars(original)}, means=means)
    with monkeypatch.context() as forger:
        forger.setattr(codec, "_is_finite", lambda _: True)
        data = encode_chunk(forged, IDENTITY)
    with pytest.raises(DamagedChunkError):
        verify(read(data), FULL, token_ids)


HALF_A_PAIR = "\ud800"
NOT_WRITTEN: dict[str, list[Any]] = {
    **{key: [7, None, {"a": 1}, HALF_A_PAIR, ABSENT] for key in ("fingerprint", "namespace", "model", "model_name")},
    "digest": [7, [1], "", "../..", "d" * 63, "d" * 65, "D" * 64, HALF_A_PAIR, ABSENT],
    "num_chars": ["forty", None, True, 1.5, -1, 2**63, [1], ABSENT],
    **{key: [7, None, True, ["x"], "x" * 17, HALF_A_PAIR, ABSENT] for key in ("prefix", "suffix")},
    "num_tokens": ["x", None, True, 70.0, -5, 0, 69, 71, 2**31 - 1, 2**70, float("inf"), ABSENT],
    "dtype": ["int64", "float8", [1], None, ABSENT],
    "kv_dtype": ["int16", "auto", ["auto"], None, 8, ABSENT],
    "format": [7, 9, "8", None, ABSENT],
    "storage": ["half", 1, ["full"], None, ABSENT],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NOT_WRITTEN.items() for value in values])
def test_wrong_metadata_is_damage(name: str, value: Any) -> None:
    data = encoded()
    assert read(rewritten(data)).identity == IDENTITY
    with pytest.raises(DamagedChunkError):
        read(rewritten(data, **{name: value}))


@pytest.mark.parametrize("shape", [[2**70, 0], [2**63, 0], [2**62, 0, 8], [0, 70], [0]])
def test_an_empty_shape_is_damage(shape: list[int]) -> None:
    with pytest.raises(DamagedChunkError):
        verify(read(with_token_ids_of_shape(encoded(), shape)), FULL)


def test_another_storage_is_damage() -> None:
    for data, shape in ((encoded(shape=INDEX), FULL), (rewritten(encoded(), storage="index"), INDEX)):
        with pytest.raises(DamagedChunkError):
            verify(read(data), shape)


SCALES = ["layer.001.keys", "layer.002.values", "block_mean_keys", "anchor_mean_key", "local_mean_query"]
HELD = ["layer.003.keys", "anchor_keys", "anchor_values", "layer.001.values"]
WRONG: dict[str, Callable[[torch.Tensor], Any]] = {
    "missing": lambda tensor: ABSENT,
    "one less": lambda tensor: tensor[:-1].contiguous(),
    "nothing": lambda tensor: tensor[..., :0].contiguous(),
    "a scalar": lambda tensor: tensor.reshape(-1)[0].clone(),
    "float64": lambda tensor: tensor.double(),
    "int64": lambda tensor: tensor.long(),
    "nan": lambda tensor: torch.full_like(tensor.bfloat16(), torch.nan),
    "inf": lambda tensor: torch.full_like(tensor.bfloat16(), torch.inf),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *((FULL, f"{name}.scales") for name in SCALES),
        *((INDEX, name + kind) for name in HELD for kind in ("", ".scales")),
    ],
)
def test_a_wrong_tensor_is_damage(shape: ChunkShape, name: str, wrong: Callable[[torch.Tensor], Any]) -> None:
    data = encoded("int8", shape)
    with pytest.raises(DamagedChunkError, match=name):
        verify(read(rewritten(data, {name: wrong(safetensors.torch.load(data)[name])})), shape)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize("name", ["layer.006.keys", "layer.0000.keys", "notes", "anchor_mean_key.scales.scales"])
def test_an_unknown_tensor_is_damage(kv_dtype: str, name: str) -> None:
    with pytest.raises(DamagedChunkError, match=f"it has {name}"):
        verify(read(rewritten(encoded(kv_dtype), {name: torch.zeros(2)})), FULL)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        # Correct checksums and shapes, but the tokens of another text.
        ({"token_ids": torch.tensor(tiny.tokenizer()(CHUNK)["input_ids"][::-1])}, {}, "its token ids are not those"),
        *(
            ({}, {name: value}, "its metadata is not that of its text")
            for name, value in [("num_chars", 3), ("prefix", "x"), ("suffix", ""), ("namespace", "b"), ("model", "b")]
        ),
    ],
    ids=["token_ids", "num_chars", "prefix", "suffix", "namespace", "model"],
)
def test_a_chunk_of_another_text_is_a_miss_and_replaced(
    make_engine: MakeEngine, tensors: dict[str, torch.Tensor], metadata: dict[str, Any], message: str
) -> None:
    engine = make_engine(chunks=[CHUNK, tiny.text(2)])
    expected = engine.generate(PROMPT, max_new_tokens=4)
    (found,) = [match for match in engine._library.find(PROMPT) if PROMPT[match.start : match.stop] == CHUNK]
    key = engine._library._key(found.text_digest)
    blob = engine.store.get(key)
    assert blob is not None
    engine.store.put(key, rewritten(bytes(read_bytes(blob)), tensors, **metadata))
    with pytest.warns(DamagedChunkWarning, match=f"{message}.*; it is computed again"):
        result = engine.generate(PROMPT, max_new_tokens=4)
    assert result.token_ids == expected.token_ids
    assert (result.metrics.chunks_hit, result.metrics.chunks_missed) == (1, 1)
    assert engine.generate(PROMPT, max_new_tokens=4).metrics.chunks_hit == 2


# int8


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200])
def test_quantising_is_bounded_by_half_a_step(num_tokens: int) -> None:
    torch.manual_seed(1)
    keys, values = torch.randn(2, 2, num_tokens, 32) * torch.logspace(-2, 2, 32)
    codes, scales = quantize_keys(keys)
    steps = scales[0].float().repeat_interleave(64, dim=1)[:, :num_tokens]
    found = dequantize_keys(codes, scales)
    assert bool(((found - keys).abs() <= steps * 0.51 + 1e-6).all())
    some = torch.arange(0, num_tokens, 3)
    assert torch.equal(dequantize_keys(codes[:, some], scales, some), found[:, some])
    for rows in (values, torch.zeros(5, 32), torch.full((5, 32), -7.5)):
        found = dequantize_rows(*quantize_rows(rows))
        assert bool(((found - rows).abs() <= rows.abs().amax(-1, keepdim=True) / 127 * 0.52 + 1e-6).all())


@pytest.mark.parametrize("kv_dtype", ["auto", "float32", "int8"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_kv_that_is_not_finite_is_not_stored(kv_dtype: str, value: float) -> None:
    chunk = cache(FULL)
    chunk.keys[0, 0, 3, 1] = value
    with pytest.raises(StoreError, match="holds a value that is not finite"):
        encode_chunk(chunk, IDENTITY, kv_dtype)


def test_a_chunk_without_blocks_is_read_in_int8(make_engine: MakeEngine) -> None:
    short = tiny.text(3, 10)
    engine = make_engine(kv_dtype="int8", method="samkv", initial_tokens=64, local_tokens=64, chunks=[CHUNK, short])
    assert engine.generate(tiny.rag_prompt([CHUNK, short]), max_new_tokens=2).metrics.chunks_hit == 2
