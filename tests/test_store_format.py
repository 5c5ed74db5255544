"""The chunk file, byte by byte: what is written stays as it is, and what was written is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash
from golden import DIGEST, FINGERPRINT, NUM_TOKENS, golden_bytes, golden_cache
from safetensors.torch import load, save

from samkv_rag.chunk_cache import ChunkCache, Layout, Means, chunk_key
from samkv_rag.config import KVDtype
from samkv_rag.exceptions import ConfigurationError, StoreError
from samkv_rag.store.format.encoding import encode_chunk
from samkv_rag.store.format.reading import (
    ChunkBytes,
    ChunkFile,
    DamagedFileError,
    EncodedReader,
    NewerFormatError,
)

NOTE = {"note": "kept as it is"}
WRITTEN: dict[str, tuple[torch.dtype, KVDtype]] = {
    "v2-bfloat16": (torch.bfloat16, "auto"),
    "v2-float16": (torch.float16, "auto"),
    "v2-float32": (torch.float32, "auto"),
    "v2-float32-as-bfloat16": (torch.float32, "bfloat16"),
    "v2-int8": (torch.bfloat16, "int8"),
    "v2-int4": (torch.bfloat16, "int4"),
}
EXACT = {name: dtype for name, (dtype, _) in WRITTEN.items() if "int" not in name} | {"v1-bfloat16": torch.bfloat16}
KEY = chunk_key(FINGERPRINT, DIGEST)


def header(data: bytes) -> tuple[int, dict[str, dict[str, object]]]:
    length = int.from_bytes(data[:8], "little")
    return 8 + length, json.loads(data[8 : 8 + length])


def assert_same(reader: EncodedReader, cache: ChunkCache, tolerance: float = 0.0) -> None:
    def same(found: torch.Tensor, expected: torch.Tensor) -> None:
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)

    same(reader.token_ids, cache.token_ids)
    assert reader.layout == cache.layout
    for layer in range(2):
        for found, expected in zip(reader.layer(layer), cache.layer(layer), strict=True):
            same(found, expected)
    for name in Means.__annotations__:
        same(getattr(reader.means(), name), getattr(cache.summary, name))
    same(reader.resume_hidden(), cache.resume_hidden())


@pytest.mark.parametrize("name", WRITTEN)
def test_a_chunk_is_written_as_the_same_bytes_for_ever(name: str) -> None:
    dtype, kv_dtype = WRITTEN[name]
    assert encode_chunk(golden_cache(dtype), DIGEST, kv_dtype, NOTE) == golden_bytes(name)


@pytest.mark.parametrize("name", EXACT)
def test_what_was_written_unquantised_is_read_bit_by_bit(name: str) -> None:
    reader = ChunkBytes(golden_bytes(name), FINGERPRINT, KEY)
    reader.verify()
    assert_same(reader, golden_cache(EXACT[name]))


@pytest.mark.parametrize(("name", "tolerance"), [("v2-int8", 2**-6), ("v2-int4", 2**-2)])
def test_what_was_written_quantised_is_read_within_half_a_step(name: str, tolerance: float) -> None:
    """Values go from -2 to 2, so a step is 4 ÷ 255 or 4 ÷ 15, rounded up to a bfloat16."""
    reader = ChunkBytes(golden_bytes(name), FINGERPRINT, KEY)
    reader.verify()
    assert_same(reader, golden_cache(), tolerance / 2 + 2**-7)  # and the result is rounded to bfloat16


def test_every_byte_of_an_unquantised_file_lies_where_the_specification_says() -> None:
    data, cache = golden_bytes("v2-bfloat16"), golden_cache()
    data_start, table = header(data)
    assert data_start % 64 == 0
    assert data[8:9] == b"{"
    kv_bytes = 2 * NUM_TOKENS * 4 * 2
    sizes = {"token_ids": NUM_TOKENS * 8, "kv.0": kv_bytes, "kv.1": kv_bytes, "hidden": NUM_TOKENS * 8 * 2}
    sizes |= {"block_mean_keys": 2 * 4 * 4 * 2, "anchor_mean_key": 2 * 4 * 2, "local_mean_query": 2 * 2 * 4 * 2}
    start = 0
    for name, num_bytes in sizes.items():
        assert table[name]["data_offsets"] == [start, start + num_bytes]
        start += num_bytes
    assert len(data) == data_start + start
    assert list(table) == ["__metadata__", *sizes]
    assert data[data_start : data_start + 16] == (1).to_bytes(8, "little") + (4).to_bytes(8, "little")
    first_key = cache.keys[0, 0, 0].view(torch.int16).tolist()
    keys_start = data_start + NUM_TOKENS * 8
    assert data[keys_start : keys_start + 8] == b"".join(x.to_bytes(2, "little", signed=True) for x in first_key)
    first_value = cache.values[0, 0, 0].view(torch.int16).tolist()
    values_start = keys_start + kv_bytes // 2
    assert data[values_start : values_start + 8] == b"".join(x.to_bytes(2, "little", signed=True) for x in first_value)


@pytest.mark.parametrize(
    ("name", "described"),
    [
        (
            "v2-int8",
            {
                "kv.1": ("I8", [2, 1, NUM_TOKENS, 4]),
                "key_scales": ("BF16", [2, 2, 1, 2, 4]),
                "value_scales": ("BF16", [2, 1, 1, NUM_TOKENS, 1]),
                "hidden": ("I8", [NUM_TOKENS, 8]),
                "hidden.scales": ("BF16", [NUM_TOKENS, 1]),
                "block_mean_keys.scales": ("BF16", [2, 1, 4, 1]),
            },
        ),
        (
            "v2-int4",
            {
                "kv.1": ("U8", [1, NUM_TOKENS, 4]),
                "key_scales": ("BF16", [2, 2, 1, 3, 4]),
                "value_scales": ("BF16", [2, 2, 1, NUM_TOKENS, 1]),
                "hidden": ("I8", [NUM_TOKENS, 8]),
            },
        ),
    ],
)
def test_quantised_tensors_have_the_specified_shapes(name: str, described: dict[str, tuple[str, list[int]]]) -> None:
    _, table = header(golden_bytes(name))
    assert {n: (table[n]["dtype"], table[n]["shape"]) for n in described} == described


@pytest.mark.parametrize("low_code", [True, False])
def test_four_bits_hold_the_key_low_and_the_value_high(low_code: bool) -> None:
    """Recomputed by hand for the first layer's last token, whose group of keys is tokens 64 to 69."""
    tensors, cache = load(golden_bytes("v2-int4")), golden_cache()
    byte = tensors["kv.0"][0, -1].int()
    if low_code:
        scale, zero = tensors["key_scales"][0, :, 0, 2].float()
        found, expected = zero + scale * (byte % 16), cache.keys[0, 0, -1].float()
    else:
        scale, zero = tensors["value_scales"][0, :, 0, -1].float()
        found, expected = zero + scale * (byte // 16), cache.values[0, 0, -1].float()
    assert (found - expected).abs().max() <= scale.max() / 2
    assert byte.max() > 15  # so that the halves are told apart


@pytest.mark.parametrize("name", ["v1-bfloat16", "v2-int8"])
def test_checksums_are_those_of_the_specification(name: str) -> None:
    data = golden_bytes(name)
    data_start, table = header(data)
    metadata = table.pop("__metadata__")
    checksums = json.loads(str(metadata["checksums"]))
    start, stop = table["kv.1"]["data_offsets"]  # type: ignore[misc]
    dtype = "int8" if "int8" in name else "bfloat16"
    covered = f"torch.{dtype}[2, 1, 70, 4]".encode() + data[data_start + start : data_start + stop]
    assert checksums["kv.1"] == xxhash.xxh3_64_hexdigest(covered)
    assert set(checksums) == set(table)
    own = metadata.pop("own_checksum")
    assert own == xxhash.xxh3_64_hexdigest(json.dumps(metadata, sort_keys=True).encode())


@pytest.mark.parametrize("name", [*WRITTEN, "v1-bfloat16"])
def test_the_safetensors_library_reads_the_same_tensors(name: str) -> None:
    data = golden_bytes(name)
    tensors = load(data)
    assert torch.equal(tensors["token_ids"], golden_cache().token_ids)
    assert set(tensors) | {"__metadata__"} == set(header(data)[1])
    reader = ChunkBytes(data)
    if name in EXACT:
        assert torch.equal(tensors["kv.1"][1].to(reader.dtype), reader.layer(1)[1])


def test_what_the_safetensors_library_writes_is_read() -> None:
    cache, ours = golden_cache(), golden_bytes("v2-bfloat16")
    metadata = header(ours)[1]["__metadata__"]
    data = save(load(ours), metadata=metadata)  # type: ignore[arg-type]
    reader = ChunkBytes(data, FINGERPRINT, KEY)
    reader.verify()
    assert_same(reader, cache)


def test_metadata_of_the_store_is_returned_and_none_of_the_formats_own_is_taken() -> None:
    reader = ChunkBytes(golden_bytes("v2-int8"))
    assert reader.metadata["note"] == "kept as it is"
    assert (reader.kv_dtype, reader.dtype, reader.key) == ("int8", torch.bfloat16, KEY)
    with pytest.raises(ValueError, match="kv_dtype is the format's own"):
        encode_chunk(golden_cache(), DIGEST, extra={"kv_dtype": "float64"})


# -- versions and damage -------------------------------------------------------------------------


def with_metadata(data: bytes, **changed: str) -> bytes:
    """A file whose metadata was changed and which is otherwise whole."""
    return save(load(data), metadata={**header(data)[1]["__metadata__"], **changed})  # type: ignore[dict-item]


@pytest.mark.parametrize("version", ["3", "17"])
def test_a_newer_format_is_refused_with_the_remedy(version: str) -> None:
    with pytest.raises(NewerFormatError, match=f"format is '{version}', this release reads up to '2'; update"):
        ChunkBytes(with_metadata(golden_bytes("v2-int8"), format=version))


@pytest.mark.parametrize("version", ["0", "", "two", "-1"])
def test_what_was_never_a_format_is_damage(version: str) -> None:
    with pytest.raises(DamagedFileError, match="expected one of 1, 2") as caught:
        ChunkBytes(with_metadata(golden_bytes("v2-int8"), format=version))
    assert not isinstance(caught.value, NewerFormatError)


FIRST_METADATA = ["fingerprint", "text_digest", "layout", "checksums"]


@pytest.mark.parametrize(
    ("name", "changed"),
    [("v1-bfloat16", n) for n in FIRST_METADATA] + [("v2-int4", n) for n in [*FIRST_METADATA, "dtype", "kv_dtype"]],
)
def test_changed_metadata_is_never_misread(name: str, changed: str) -> None:
    assert changed in header(golden_bytes(name))[1]["__metadata__"]
    data = with_metadata(golden_bytes(name), **{changed: "float32"})
    with pytest.raises(DamagedFileError, match=r"the checksum of its metadata differs|fingerprint|another chunk"):
        ChunkBytes(data, FINGERPRINT, KEY).verify()


@pytest.mark.parametrize("name", ["v1-bfloat16", "v2-bfloat16", "v2-int8", "v2-int4"])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0x29])
def test_any_flipped_byte_is_found(name: str, flip: int) -> None:
    data = golden_bytes(name)
    for offset in [*range(header(data)[0]), *range(header(data)[0], len(data), 29)]:
        damaged = bytearray(data)
        damaged[offset] ^= flip
        with pytest.raises(DamagedFileError):
            ChunkBytes(bytes(damaged), FINGERPRINT, KEY).verify()


@pytest.mark.parametrize("keep", [0, 7, 8, 9, 500, -1])
def test_a_truncated_chunk_is_refused_when_opened(keep: int) -> None:
    with pytest.raises(DamagedFileError, match="unreadable"):
        ChunkBytes(golden_bytes("v2-int8")[:keep])


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    with pytest.raises(DamagedFileError, match="its tensors end at byte"):
        ChunkBytes(golden_bytes("v2-int8") + b"\0")


@pytest.mark.parametrize(
    "table",
    [
        "[]",
        "7",
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}',
        '{"__metadata__": {"format": 2}}',
        "[" * 100_000,
    ],
)
def test_a_header_of_anything_else_is_refused(table: str) -> None:
    text = table.encode()
    with pytest.raises(DamagedFileError, match="unreadable header"):
        ChunkBytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)


def test_a_header_that_claims_the_whole_memory_is_refused() -> None:
    with pytest.raises(DamagedFileError, match="the limit is"):
        ChunkBytes((2**62).to_bytes(8, "little") + b"{}")


# -- files ---------------------------------------------------------------------------------------


def test_files_and_bytes_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / f"{KEY}.safetensors"
    for name in EXACT:
        path.write_bytes(golden_bytes(name))
        reader = ChunkFile(path, FINGERPRINT)
        reader.verify()
        assert_same(reader, golden_cache(EXACT[name]))


def test_a_replaced_file_does_not_show_through(tmp_path: Path) -> None:
    path, other = tmp_path / f"{KEY}.safetensors", tmp_path / "new"
    path.write_bytes(golden_bytes("v2-bfloat16"))
    reader = ChunkFile(path, FINGERPRINT)
    other.write_bytes(golden_bytes("v2-int4"))
    other.replace(path)
    reader.verify()
    assert_same(reader, golden_cache())


def test_a_file_cut_while_it_is_open_is_damage(tmp_path: Path) -> None:
    path = tmp_path / f"{KEY}.safetensors"
    path.write_bytes(golden_bytes("v2-bfloat16"))
    reader = ChunkFile(path, FINGERPRINT)
    path.write_bytes(golden_bytes("v2-bfloat16")[:3000])
    with pytest.raises(DamagedFileError, match="0 of 1120 bytes at"):
        reader.resume_hidden()


def test_files_are_read_where_there_is_no_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.preadv")
    path = tmp_path / f"{KEY}.safetensors"
    path.write_bytes(golden_bytes("v2-bfloat16"))
    assert_same(ChunkFile(path, FINGERPRINT), golden_cache())


@pytest.mark.parametrize("name", ["v2-bfloat16", "v2-float32-as-bfloat16", "v2-int8", "v2-int4"])
def test_a_layer_is_read_into_any_place(name: str) -> None:
    """As a pass assembles chunks: between other columns, by head."""
    reader = ChunkBytes(golden_bytes(name))
    expected_keys, expected_values = reader.layer(1)
    place = torch.full((2, 1, NUM_TOKENS + 5, 4), 7.0, dtype=reader.dtype)
    reader.fill_layer(1, *place[:, :, 2 : NUM_TOKENS + 2])
    assert torch.equal(place[0, :, 2 : NUM_TOKENS + 2], expected_keys)
    assert torch.equal(place[1, :, 2 : NUM_TOKENS + 2], expected_values)
    assert bool((place[:, :, :2] == 7).all() and (place[:, :, NUM_TOKENS + 2 :] == 7).all())
    spread = torch.zeros(2, 1, NUM_TOKENS, 8, dtype=reader.dtype)[..., ::2]
    reader.fill_layer(1, *spread)
    assert torch.equal(spread[0], expected_keys)


# -- dtypes --------------------------------------------------------------------------------------


def test_bfloat16_is_refused_for_a_model_in_float16() -> None:
    with pytest.raises(ConfigurationError, match="the model computes in float16, which takes the same bytes"):
        encode_chunk(golden_cache(torch.float16), DIGEST, "bfloat16")


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_what_is_not_finite_is_refused_by_name_of_the_remedy(kv_dtype: KVDtype) -> None:
    cache = golden_cache()
    cache.values[1, 0, 3, 2] = float("inf")
    with pytest.raises(StoreError, match="use kv_dtype='auto'"):
        encode_chunk(cache, DIGEST, kv_dtype)
    encode_chunk(cache, DIGEST, "auto")


def test_the_cache_says_what_it_is_kept_in_unless_the_caller_does() -> None:
    cache = golden_cache()
    assert ChunkBytes(encode_chunk(cache, DIGEST)).kv_dtype == "bfloat16"
    quantised = ChunkCache(
        cache.token_ids, cache.keys, cache.values, cache.summary, Layout(4, 4, 16), FINGERPRINT, kv_dtype="int4"
    )
    assert ChunkBytes(encode_chunk(quantised, DIGEST)).kv_dtype == "int4"
    assert ChunkBytes(encode_chunk(quantised, DIGEST, "int8")).kv_dtype == "int8"
