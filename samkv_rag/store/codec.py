"""A chunk cache as the bytes of a safetensors file, and back, layer by layer; ``docs/format.md`` specifies it.

Tensors: ``token_ids`` [tokens]; ``kv.<layer>`` [2, kv_heads, tokens, head_dim], keys then values;
``block_mean_keys``, ``anchor_mean_key``, ``local_mean_query``; in int8 with their scales beside them.
Metadata: one JSON document with who computed the chunk, of which text, and an XXH3-64 checksum of every
tensor and of the document itself.

The library writes the files. It reads them whole or through a memory map; here one layer at a time goes
straight to its place in the assembled prompt, so reading is our own.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch
import xxhash
from safetensors.torch import save

from samkv_rag.chunk_cache import ChunkCache, ChunkShape, Summary, chunk_key
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, StoreError
from samkv_rag.store.base import Blob, Buffer, DamagedBlobError, Store, read_bytes, require_key
from samkv_rag.store.quantization import (
    KEY_GROUP_TOKENS,
    VALUE_GROUP_CHANNELS,
    QuantizedLayer,
    dequantize_layer,
    dequantize_rows,
    num_row_groups,
    quantize_layer,
    quantize_rows,
)

FORMAT_VERSION = 6
PREFIX_CHARS = 16
"""Characters of a text's prefix and suffix, by which it is noticed in prompts; shorter texts are not worth a cache."""
_METADATA = "samkv"
_SUMMARY = tuple(field.name for field in fields(Summary))
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
}
_MODEL_DTYPES = {
    str(t).removeprefix("torch."): t for t in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
}
_FIRST_READ_BYTES = 16 << 10
_PIECE_BYTES = 4 << 20
_MAX_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class ChunkIdentity:
    """Whose chunk it is; stands in its file, so that a catalog can be made again."""

    fingerprint: str
    """Model, tokenizer, summary and tenant."""
    digest: str
    """Of the text."""
    num_chars: int
    prefix: str
    suffix: str
    """The text's first and last characters."""
    num_tokens: int
    namespace: str = ""
    model: str = ""
    """The model's fingerprint, whatever the tenant."""
    model_name: str = ""

    @property
    def key(self) -> str:
        """The chunk's key in a store."""
        return chunk_key(self.fingerprint, self.digest)


def stored_dtype(kv_dtype: str, dtype: torch.dtype) -> str:
    """What the KV of a model that computes in ``dtype`` is kept in: a dtype's name, or ``int8``.

    Raises:
        ConfigurationError: the two do not go together.
    """
    if kv_dtype == "auto":
        return _name(dtype)
    if kv_dtype == "bfloat16" and dtype == torch.float16:
        raise ConfigurationError(
            "kv_dtype is 'bfloat16', the model computes in float16, which takes the same bytes and is more exact; "
            "use 'auto' or 'int8'"
        )
    return kv_dtype


def encode_chunk(cache: ChunkCache, identity: ChunkIdentity, kv_dtype: str = "auto") -> bytes:
    """The file of ``cache``; equal bytes for equal arguments.

    Raises:
        StoreError: a value is not finite, which a quantised chunk cannot hold.
    """
    stored = stored_dtype(kv_dtype, cache.keys.dtype)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _tensors(cache, stored).items()}
    body = {
        "format": FORMAT_VERSION,
        **asdict(identity),
        "dtype": _name(cache.keys.dtype),
        "kv_dtype": stored,
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
    }
    # One entry of metadata: the library writes several in random order.
    return bytes(save(tensors, {_METADATA: json.dumps({"body": body, "checksum": _body_checksum(body)})}))


def open_chunk(store: Store, key: str) -> StoredChunk | None:
    """Reader of what is stored under ``key``; None where nothing is.

    Raises:
        DamagedChunkError: it is not a chunk of this format, or another chunk's.
    """
    blob = store.get(key)
    chunk = None if blob is None else StoredChunk(blob)
    if chunk is not None and chunk.identity.key != key:
        raise DamagedChunkError("it is another chunk's")
    return chunk


class StoredChunk:
    """Reader of an encoded chunk; every tensor it returns is an owned copy.

    Raises:
        DamagedChunkError: not a chunk of this format.
    """

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self._tensors, self._body = _read_header(blob)
        try:
            self.identity = _identity(self._body)
            self._dtype = _MODEL_DTYPES[self._body["dtype"]]
            self.kv_dtype = self._body["kv_dtype"]
            if self.kv_dtype not in ("int8", *_MODEL_DTYPES):
                raise ValueError(f"kv_dtype {self.kv_dtype!r}")
        except (KeyError, TypeError, ValueError, StoreError) as error:
            raise DamagedChunkError(f"its metadata is not what a writer writes ({error!r})") from error
        ids, num_tokens = self._span("token_ids"), self.identity.num_tokens
        if (ids.dtype, ids.shape) != (torch.int64, (num_tokens,)):
            raise DamagedChunkError(f"its token ids are {ids.dtype} {list(ids.shape)}, expected int64 [{num_tokens}]")

    @property
    def num_bytes(self) -> int:
        """Size of the whole encoded chunk."""
        return self.blob.size

    @cached_property
    def token_ids(self) -> torch.Tensor:
        return self._read("token_ids")

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self._span(f"kv.{layer:03}").shape[1:]
        keys, values = torch.empty(2, *shape, dtype=self._dtype)
        self.fill_layer(layer, keys, values)
        return keys, values

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        span = self._span(name := f"kv.{layer:03}")
        if self.kv_dtype == "int8":
            scales = (self._read(f"{kind}_scales", layer) for kind in ("key", "value"))
            dequantize_layer(QuantizedLayer(self._read(name), *scales), keys, values)
        elif keys.dtype == span.dtype and keys[0].is_contiguous() and values[0].is_contiguous():
            # From the store to its place in one call, head by head.
            self._read_into(span.start, [*keys.view(torch.uint8).numpy(), *values.view(torch.uint8).numpy()])
        else:
            stored_keys, stored_values = self._read(name)
            keys.copy_(stored_keys)
            values.copy_(stored_values)

    def summary(self) -> Summary:
        return Summary(*(self._rows(name) for name in _SUMMARY))

    def verify(self, shape: ChunkShape | None = None, token_ids: list[int] | None = None) -> None:
        """Compare every tensor with its checksum and, where given, with what the model and the text say.

        Raises:
            DamagedChunkError: something differs.
        """
        checksums = self._body.get("checksums")
        if not isinstance(checksums, dict) or set(checksums) != set(self._tensors):
            raise DamagedChunkError("its list of tensors is not that of its checksums")
        for name, span in self._tensors.items():
            checksum, is_finite = self._examined(span)
            if checksum != checksums[name]:
                raise DamagedChunkError(f"the checksum of {name} differs")
            if not is_finite:
                raise DamagedChunkError(f"{name} holds a value that is not finite")
        if shape is not None:
            self._require_shape(shape)
        if token_ids is not None and self.token_ids.tolist() != token_ids:
            raise DamagedChunkError("its token ids are not those of its text")

    def _require_shape(self, wanted: ChunkShape) -> None:
        """A file with right checksums can still have been made by somebody else."""
        if self._dtype != wanted.dtype:
            raise DamagedChunkError(f"its dtype is {self._dtype}, the model's {wanted.dtype}")
        ids = self.token_ids
        if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= wanted.vocab_size:
            raise DamagedChunkError(f"a token id is outside of 0 to {wanted.vocab_size - 1}")
        expected = _expected(wanted, len(ids), self.kv_dtype)
        if extra := sorted(self._tensors.keys() - expected):
            raise DamagedChunkError(f"it has {extra[0]}, which no chunk of this model has")
        for name, (dtype, shape) in expected.items():
            found = self._span(name)
            if (found.dtype, found.shape) != (dtype, shape):
                raise DamagedChunkError(f"{name} is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}")

    def _rows(self, name: str) -> torch.Tensor:
        rows = self._read(name)
        if self.kv_dtype == "int8":
            return dequantize_rows(rows, self._read(f"{name}.scales"), self._dtype)
        return rows.to(self._dtype)

    def _span(self, name: str) -> _Span:
        try:
            return self._tensors[name]
        except KeyError:
            raise DamagedChunkError(f"it has no tensor {name}") from None

    def _read(self, name: str, index: int | None = None) -> torch.Tensor:
        span = self._span(name) if index is None else self._span(name).item(index)
        tensor = torch.empty(span.shape, dtype=span.dtype)
        self._read_into(span.start, [_raw(tensor)])
        return tensor

    def _read_into(self, start: int, buffers: list[Buffer]) -> None:
        try:
            self.blob.read_into(start, buffers)
        except DamagedBlobError as error:
            raise DamagedChunkError(str(error)) from error

    def _examined(self, span: _Span) -> tuple[str, bool]:
        """A tensor's checksum, and whether all of its values are finite; its bytes are read once."""
        hasher, is_finite = _hasher(span.dtype, span.shape), True
        for start in range(span.start, span.stop, _PIECE_BYTES):
            self._read_into(start, [piece := bytearray(min(_PIECE_BYTES, span.stop - start))])
            hasher.update(piece)
            if span.dtype.is_floating_point:
                is_finite = is_finite and bool(torch.isfinite(torch.frombuffer(piece, dtype=span.dtype)).all())
        return hasher.hexdigest(), is_finite


@dataclass(frozen=True)
class _Span:
    """Where a tensor lies, in bytes from the file's beginning, and how its bytes are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    def item(self, index: int) -> _Span:
        """The part of the tensor at ``index`` of its first dimension."""
        num_bytes = (self.stop - self.start) // self.shape[0]
        start = self.start + index * num_bytes
        return _Span(self.dtype, self.shape[1:], start, start + num_bytes)


def _read_header(blob: Blob) -> tuple[dict[str, _Span], dict[str, Any]]:
    """Read and check a file's header: afterwards every tensor lies within the file, and nothing else does."""
    try:
        first = read_bytes(blob, 0, min(blob.size, _FIRST_READ_BYTES))
        length = int.from_bytes(first[:8], "little")
        if blob.size < 8 or length > min(_MAX_HEADER_BYTES, blob.size - 8):
            raise DamagedChunkError(f"its header would have {length} bytes of {blob.size}")
        text = first[8 : 8 + length] if 8 + length <= len(first) else read_bytes(blob, 8, 8 + length)
        table = json.loads(text.decode())
        document = json.loads(table.pop("__metadata__")[_METADATA])
        tensors = {name: _span(described, 8 + length) for name, described in table.items()}
        body = document["body"]
        if document["checksum"] != _body_checksum(body):
            raise DamagedChunkError("the checksum of its metadata differs")
        if body["format"] != FORMAT_VERSION:
            raise DamagedChunkError(f"its format is {body['format']!r}, expected {FORMAT_VERSION}")
    except (DamagedBlobError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedChunkError(f"it is not a chunk file, or not all of one ({error!r})") from error
    position = 8 + length
    for span in sorted(tensors.values(), key=lambda span: (span.start, span.stop)):
        if span.start != position:
            raise DamagedChunkError(f"a tensor begins at byte {span.start}, expected {position}")
        position = span.stop
    if position != blob.size:
        raise DamagedChunkError(f"its tensors end at byte {position}, the file at {blob.size}")
    return tensors, body


def _identity(body: dict[str, Any]) -> ChunkIdentity:
    """Whose chunk a file says it is, where a catalog can hold that."""
    identity = ChunkIdentity(**{field.name: body[field.name] for field in fields(ChunkIdentity)})
    for field in fields(identity):
        value = body[field.name]
        if type(value).__name__ != field.type or (type(value) is int and not 0 <= value < 2**63):
            raise ValueError(f"{field.name} {value!r:.80}")
        str(value).encode()  # JSON can spell half a surrogate pair
    if len(identity.prefix) > PREFIX_CHARS or len(identity.suffix) > PREFIX_CHARS:
        raise ValueError(f"a prefix or suffix of more than {PREFIX_CHARS} characters")
    require_key(identity.digest)
    return identity


def _span(described: dict[str, Any], data_start: int) -> _Span:
    dtype, shape, (start, stop) = _DTYPES[described["dtype"]], described["shape"], described["data_offsets"]
    if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape} at {start} to {stop}")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape {shape} in {stop - start} bytes")
    return _Span(dtype, tuple(shape), data_start + start, data_start + stop)


def _tensors(cache: ChunkCache, stored: str) -> dict[str, torch.Tensor]:
    rows = {name: getattr(cache.means, name) for name in _SUMMARY}
    pairs = zip(cache.keys, cache.values, strict=True)
    tensors = {"token_ids": cache.token_ids}
    if stored != "int8":
        kv = {f"kv.{layer:03}": torch.stack(pair) for layer, pair in enumerate(pairs)}
        return tensors | {name: tensor.to(_MODEL_DTYPES[stored]) for name, tensor in (kv | rows).items()}
    layers = [quantize_layer(keys.cpu(), values.cpu()) for keys, values in pairs]
    tensors |= {f"kv.{number:03}": layer.codes for number, layer in enumerate(layers)}
    tensors["key_scales"] = torch.stack([layer.key_scales for layer in layers])
    tensors["value_scales"] = torch.stack([layer.value_scales for layer in layers])
    for name, values in rows.items():
        tensors[name], tensors[f"{name}.scales"] = quantize_rows(values.cpu())
    return tensors


def _expected(wanted: ChunkShape, num_tokens: int, kv_dtype: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """What ``_tensors`` makes of a chunk of ``wanted``: every tensor's dtype and shape."""
    layers, heads, dim = wanted.num_layers, wanted.num_kv_heads, wanted.head_dim
    rows: dict[str, tuple[int, ...]] = {
        "block_mean_keys": (layers, heads, wanted.spec.num_blocks(num_tokens), dim),
        "anchor_mean_key": (layers, heads, dim),
        "local_mean_query": (layers, wanted.num_heads, dim),
    }
    codes = {f"kv.{layer:03}": (2, heads, num_tokens, dim) for layer in range(layers)} | rows
    stored = torch.int8 if kv_dtype == "int8" else _MODEL_DTYPES[kv_dtype]
    expected = {"token_ids": (torch.int64, (num_tokens,)), **{name: (stored, shape) for name, shape in codes.items()}}
    if kv_dtype == "int8":
        scales = {f"{name}.scales": (*shape[:-1], num_row_groups(shape[-1])) for name, shape in rows.items()}
        scales["key_scales"] = (layers, 2, heads, -(-num_tokens // KEY_GROUP_TOKENS), dim)
        scales["value_scales"] = (layers, heads, num_tokens, num_row_groups(dim, VALUE_GROUP_CHANNELS))
        expected |= {name: (torch.bfloat16, shape) for name, shape in scales.items()}
    return expected


def _hasher(dtype: torch.dtype, shape: tuple[int, ...] | torch.Size) -> xxhash.xxh3_64:
    """Takes a tensor's bytes; how they are read counts, too."""
    return xxhash.xxh3_64(f"{dtype}{list(shape)}".encode())


def _checksum(tensor: torch.Tensor) -> str:
    hasher = _hasher(tensor.dtype, tensor.shape)
    hasher.update(_raw(tensor))
    return hasher.hexdigest()


def _body_checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def _raw(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host, in memory order; no copy."""
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
