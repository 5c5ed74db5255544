"""A chunk as bytes and back: exact, checked, in 8 bits too; no forged file is trusted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch

from samkv_rag.chunk_cache import ChunkCache, ChunkShape, Summary, SummarySpec
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, DamagedChunkWarning, StoreError
from samkv_rag.store.base import BytesBlob, read_bytes
from samkv_rag.store.codec import ChunkIdentity, StoredChunk, encode_chunk, stored_dtype
from samkv_rag.store.quantization import dequantize_keys, dequantize_rows, quantize_keys, quantize_rows
from support import tiny
from support.crafting import ABSENT, rewritten, verify, with_token_ids_of_shape
from support.engines import MakeEngine

IDENTITY = ChunkIdentity("f" * 64, "d" * 64, 100, "The lamp burns p", "lit at sunset 漢🦭", 70)
SHAPE = ChunkShape(3, 4, 2, 16, 512, torch.float32, SummarySpec(8, 8, 16))
CHUNK = tiny.text(1)
PROMPT = tiny.rag_prompt([CHUNK, tiny.text(2)])


def cache(dtype: torch.dtype = torch.float32, num_tokens: int = 70) -> ChunkCache:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, 2, num_tokens, 16).to(dtype)
    means = Summary(
        torch.randn(3, 2, 4, 16).to(dtype), torch.randn(3, 2, 16).to(dtype), torch.randn(3, 4, 16).to(dtype)
    )
    return ChunkCache(torch.arange(num_tokens), keys, values, means)


def read(data: bytes) -> StoredChunk:
    return StoredChunk(BytesBlob(data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_encoded_is_read(dtype: torch.dtype) -> None:
    original = cache(dtype)
    chunk = read(encode_chunk(original, IDENTITY, "float32" if dtype == torch.float32 else "auto"))
    assert chunk.identity == IDENTITY
    assert torch.equal(chunk.token_ids, original.token_ids)
    for layer in range(3):
        for ours, theirs in zip(chunk.layer(layer), original.layer(layer), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(vars(chunk.summary()).values(), vars(original.means).values(), strict=True):
        assert torch.equal(ours, theirs)
    verify(chunk, replace(SHAPE, dtype=dtype), list(range(70)))


@pytest.mark.parametrize("kv_dtype", ["float32", "int8", "bfloat16"])
def test_a_layer_is_read_into_any_place(kv_dtype: Any) -> None:
    chunk = read(encode_chunk(cache(), IDENTITY, kv_dtype))
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
def test_of_a_few_tokens_no_more_is_read(kv_dtype: Any, itemsize: int, num_scale_bytes: int, tokens: list[int]) -> None:
    chunk = read(encode_chunk(cache(), IDENTITY, kv_dtype))
    first, whole = chunk.layer(1, torch.tensor(tokens)), chunk.layer(1)  # checked, and so read whole
    before = chunk.bytes_read
    again = chunk.layer(1, torch.tensor(tokens))
    assert chunk.bytes_read - before == 2 * 2 * len(tokens) * 16 * itemsize + num_scale_bytes
    for once, twice, theirs in zip(first, again, whole, strict=True):
        assert torch.equal(once, theirs[:, tokens])
        assert torch.equal(twice, theirs[:, tokens])


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_damage_is_found_where_it_is_read_and_not_before(kv_dtype: Any) -> None:
    data = bytearray(encode_chunk(cache(), IDENTITY, kv_dtype))
    data[read(bytes(data)).tensors["layer.001.values"].start] ^= 1
    chunk, tokens = read(bytes(data)), torch.tensor([60])
    chunk.require(SHAPE, list(range(70)))
    for layer in (0, 2):
        chunk.layer(layer)
    chunk.fill_layer(1, torch.empty(2, 70, 16), None)
    for spoilt in (
        lambda: chunk.layer(1),
        lambda: chunk.layer(1, tokens),  # another token's byte is wrong, and nothing says which
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
def test_the_format_does_not_change_unnoticed(kv_dtype: Any, storage: Any, golden: str) -> None:
    """Bytes of a chunk made without random numbers. Where this fails on purpose, raise FORMAT_VERSION."""
    ramp = torch.arange(3 * 2 * 8 * 16).reshape(3, 2, 8, 16) / 64
    means = Summary(ramp[:, :, :1], ramp[:, :, 0], ramp[:, :, 1].repeat(1, 2, 1))
    chunk = ChunkCache(torch.arange(8), ramp, -ramp, means)
    data = encode_chunk(chunk, replace(IDENTITY, num_tokens=8), kv_dtype, storage)
    assert hashlib.sha256(data).hexdigest()[:16] == golden


def test_the_default_at_rest_is_never_float32() -> None:
    found = {
        dtype: stored_dtype("auto", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    }
    assert list(found.values()) == ["bfloat16", "bfloat16", "bfloat16", "float16"]
    with pytest.raises(ConfigurationError, match="use 'auto' or 'int8'"):
        stored_dtype("float32", torch.bfloat16)


def test_every_flipped_bit_is_found() -> None:
    data = encode_chunk(cache(num_tokens=6), replace(IDENTITY, num_tokens=6))
    step = max(1, len(data) // 600)
    for at in range(0, len(data), step):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << at % 8
        with pytest.raises(DamagedChunkError):
            verify(read(bytes(spoilt)), SHAPE, list(range(6)))


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 100, b"\0" * 5000, b"{}" * 5000])
def test_what_is_no_chunk_is_damaged(data: bytes) -> None:
    with pytest.raises(DamagedChunkError):
        read(data)


# Files with right checksums whose contents are wrong


def forged(**changes: Any) -> bytes:
    original = cache()
    parts = {name: changes.get(name, getattr(original, name)) for name in ("token_ids", "keys", "values")}
    means = Summary(**(vars(original.means) | {k: v for k, v in changes.items() if k in vars(original.means)}))
    return encode_chunk(ChunkCache(parts["token_ids"], parts["keys"], parts["values"], means), IDENTITY)


NAN = torch.full((3, 2, 70, 16), torch.nan)
FORGED = {
    "fewer layers": {"keys": torch.zeros(2, 2, 70, 16), "values": torch.zeros(2, 2, 70, 16)},
    "more layers": {"keys": torch.zeros(4, 2, 70, 16), "values": torch.zeros(4, 2, 70, 16)},
    "other heads": {"keys": torch.zeros(3, 1, 70, 16), "values": torch.zeros(3, 1, 70, 16)},
    "fewer tokens": {"keys": torch.zeros(3, 2, 69, 16), "values": torch.zeros(3, 2, 69, 16)},
    "other head_dim": {"keys": torch.zeros(3, 2, 70, 8), "values": torch.zeros(3, 2, 70, 8)},
    "nan keys": {"keys": NAN},
    "inf values": {"values": NAN.nan_to_num(torch.inf)},
    "other dtype": {"keys": torch.zeros(3, 2, 70, 16).double(), "values": torch.zeros(3, 2, 70, 16).double()},
    "ids past the vocabulary": {"token_ids": torch.arange(70) + 500},
    "negative ids": {"token_ids": torch.arange(70) - 1},
    "no ids": {"token_ids": torch.arange(0)},
    "float ids": {"token_ids": torch.arange(70).float()},
    "means of other layers": {"anchor_mean_key": torch.zeros(2, 2, 16)},
    "queries of other heads": {"local_mean_query": torch.zeros(3, 2, 16)},
    "block means of other heads": {"block_mean_keys": torch.zeros(3, 1, 4, 16)},
    "block means of fewer dimensions": {"block_mean_keys": torch.zeros(3, 2)},
    "block means of no block": {"block_mean_keys": torch.zeros(3, 2, 0, 16)},
    "block means of a block less": {"block_mean_keys": torch.zeros(3, 2, 3, 16)},
    "block means of a block more": {"block_mean_keys": torch.zeros(3, 2, 5, 16)},
    "nan block means": {"block_mean_keys": torch.full((3, 2, 4, 16), torch.nan)},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("token_ids", [list(range(70)), None], ids=["with text", "without"])
def test_a_forged_chunk_is_not_trusted(changes: dict[str, Any], token_ids: list[int] | None) -> None:
    with pytest.raises(DamagedChunkError):
        verify(read(forged(**changes)), SHAPE, token_ids)


HALF_A_PAIR = "\ud800"
NOT_WRITTEN: dict[str, list[Any]] = {
    "fingerprint": [7, None, ["f"], HALF_A_PAIR, ABSENT],
    "digest": [7, [1], "", "../..", "d" * 63, "d" * 65, "D" * 64, HALF_A_PAIR, ABSENT],
    "num_chars": ["forty", None, True, 1.5, -1, 2**63, [1], ABSENT],
    "prefix": [7, None, True, ["x"], "x" * 17, HALF_A_PAIR, ABSENT],
    "suffix": [7, None, True, ["x"], "x" * 17, HALF_A_PAIR, ABSENT],
    "num_tokens": ["x", None, True, 70.0, -5, 0, 69, 71, 2**31 - 1, 2**70, float("inf"), ABSENT],
    "namespace": [{"a": 1}, None, 7, HALF_A_PAIR, ABSENT],
    "model": [7, None, HALF_A_PAIR, ABSENT],
    "model_name": [7, None, HALF_A_PAIR, ABSENT],
    "dtype": ["int64", "float8", [1], None, ABSENT],
    "kv_dtype": ["int16", "auto", ["auto"], None, 8, ABSENT],
    "format": [7, 9, "8", None, ABSENT],
    "storage": ["half", 1, ["full"], None, ABSENT],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NOT_WRITTEN.items() for value in values])
def test_metadata_that_no_writer_writes_is_damage(name: str, value: Any) -> None:
    data = encode_chunk(cache(), IDENTITY)
    assert read(rewritten(data)).identity == IDENTITY
    with pytest.raises(DamagedChunkError):
        read(rewritten(data, **{name: value}))


@pytest.mark.parametrize("shape", [[2**70, 0], [2**63, 0], [2**62, 0, 8], [0, 70], [0]])
def test_a_shape_that_holds_nothing_is_damage(shape: list[int]) -> None:
    data = with_token_ids_of_shape(encode_chunk(cache(), IDENTITY), shape)
    with pytest.raises(DamagedChunkError):
        verify(read(data), SHAPE)


SCALES = {
    "layer.001.keys.scales": (2, 2, 2, 16),
    "layer.002.values.scales": (2, 70, 1),
    "block_mean_keys.scales": (3, 2, 4, 1),
    "anchor_mean_key.scales": (3, 2, 1),
    "local_mean_query.scales": (3, 4, 1),
}
WRONG: dict[str, Callable[[torch.Tensor], Any]] = {
    "missing": lambda scales: ABSENT,
    "one less": lambda scales: scales[:-1].contiguous(),
    "no groups": lambda scales: scales[..., :0].contiguous(),
    "a scalar": lambda scales: scales.reshape(-1)[0].clone(),
    "float64": lambda scales: scales.double(),
    "int64": lambda scales: scales.long(),
    "nan": lambda scales: torch.full_like(scales, torch.nan),
    "inf": lambda scales: torch.full_like(scales, torch.inf),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", SCALES)
def test_scales_that_no_writer_writes_are_damage(name: str, wrong: Callable[[torch.Tensor], Any]) -> None:
    data = encode_chunk(cache(), IDENTITY, "int8")
    verify(read(data), SHAPE)
    scales = safetensors.torch.load(data)[name]
    assert tuple(scales.shape) == SCALES[name]
    with pytest.raises(DamagedChunkError, match=name):
        verify(read(rewritten(data, {name: wrong(scales)})), SHAPE)


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
@pytest.mark.parametrize(
    "name",
    ["layer.003.keys", "layer.0000.keys", "layer.000.scales", "notes", "hidden", "anchor_mean_key.scales.scales"],
)
def test_a_tensor_that_no_writer_writes_is_damage(kv_dtype: Any, name: str) -> None:
    data = encode_chunk(cache(), IDENTITY, kv_dtype)
    with pytest.raises(DamagedChunkError, match=f"it has {name}"):
        verify(read(rewritten(data, {name: torch.zeros(2)})), SHAPE)


POISONED = tiny.tokenizer()(CHUNK)["input_ids"][::-1]
"""Right checksums, right shapes, another text's tokens: what a race once stored."""


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"token_ids": torch.tensor(POISONED)}, {}, "its token ids are not those of its text"),
        *(
            ({}, {name: value}, "its metadata is not that of its text")
            for name, value in [("num_chars", 3), ("prefix", "x"), ("suffix", ""), ("namespace", "b"), ("model", "b")]
        ),
    ],
    ids=["token_ids", "num_chars", "prefix", "suffix", "namespace", "model"],
)
def test_what_is_of_another_text_is_a_miss_and_mended(
    make_engine: MakeEngine, tensors: dict[str, torch.Tensor], metadata: dict[str, Any], message: str
) -> None:
    engine = make_engine(chunks=[CHUNK, tiny.text(2)])
    expected = engine.generate(PROMPT, max_new_tokens=4)
    (found,) = [match for match in engine._library.find(PROMPT) if PROMPT[match.start : match.stop] == CHUNK]
    key = engine._library._key(found.text_digest)
    blob = engine.store.get(key)
    assert blob is not None
    engine.store.put(key, rewritten(bytes(read_bytes(blob)), tensors, **metadata))
    with pytest.warns(DamagedChunkWarning, match=f"{message}; it is computed again"):
        result = engine.generate(PROMPT, max_new_tokens=4)
    assert result.token_ids == expected.token_ids
    assert (result.metrics.chunks_hit, result.metrics.chunks_missed) == (1, 1)
    assert engine.generate(PROMPT, max_new_tokens=4).metrics.chunks_hit == 2


# int8


def test_int8_is_close_and_half_as_large() -> None:
    original = cache(torch.bfloat16)
    data, plain = (encode_chunk(original, IDENTITY, kv_dtype) for kv_dtype in ("int8", "auto"))
    chunk = read(data)
    for layer in range(3):
        for ours, theirs in zip(chunk.layer(layer), original.layer(layer), strict=True):
            assert float((ours.float() - theirs.float()).abs().max()) < 0.04
    assert len(data) < 0.65 * len(plain)
    verify(chunk, replace(SHAPE, dtype=torch.bfloat16), list(range(70)))


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 65, 200])
def test_quantising_is_bounded_by_half_a_step(num_tokens: int) -> None:
    torch.manual_seed(1)
    keys, values = torch.randn(2, 2, num_tokens, 32) * torch.logspace(-2, 2, 32)
    codes, scales = quantize_keys(keys)
    steps = scales[0].float().repeat_interleave(64, dim=1)[:, :num_tokens]
    assert bool(((dequantize_keys(codes, scales) - keys).abs() <= steps * 0.51 + 1e-6).all())
    found = dequantize_rows(*quantize_rows(values))
    assert bool(((found - values).abs() <= values.abs().amax(-1, keepdim=True) / 127 * 0.52 + 1e-6).all())


def test_equal_and_zero_values_survive() -> None:
    for value in (0.0, 3.0, -7.5):
        rows = torch.full((5, 32), value)
        assert torch.allclose(dequantize_rows(*quantize_rows(rows)), rows, rtol=0.01)


def test_a_chunk_without_blocks_is_read_in_int8(make_engine: MakeEngine) -> None:
    short = tiny.text(3, 10)
    engine = make_engine(kv_dtype="int8", method="samkv", initial_tokens=64, local_tokens=64, chunks=[CHUNK, short])
    assert engine.generate(tiny.rag_prompt([CHUNK, short]), max_new_tokens=2).metrics.chunks_hit == 2


def test_what_is_not_finite_cannot_be_int8() -> None:
    with pytest.raises(StoreError, match="not finite, which int8 cannot hold"):
        quantize_rows(torch.full((2, 32), torch.inf))


def test_float16_is_not_stored_as_bfloat16() -> None:
    with pytest.raises(ConfigurationError, match="use 'auto' or 'int8'"):
        stored_dtype("bfloat16", torch.float16)
