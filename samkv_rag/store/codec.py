"""A chunk cache as the bytes of a safetensors file, and back, layer by layer; ``docs/format.md`` specifies it.

Tensors: ``token_ids`` [tokens]; then in full ``kv.<layer>`` [2, kv_heads, tokens, head_dim], keys then values,
``block_mean_keys``, ``anchor_mean_key``, ``local_mean_query``; in an index ``keys`` of the scoring layers,
``values.<layer>`` of the ranking layer, and ``anchor_keys`` and ``anchor_values`` of the anchors up to the last scoring
layer. In int8 with their scales beside them. Metadata: one JSON document with who computed the chunk, of which text,
and an XXH3-64 checksum of every tensor and of the document itself.

The library writes the files. It reads them whole or through a memory map; here one layer at a time goes
straight to its place in the assembled prompt, so reading is our own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
import xxhash
from safetensors.torch import save

from samkv_rag.chunk_cache import (
    ChunkCache,
    ChunkShape,
    Summary,
    chunk_key,
    index_anchors,
    ranking_layer,
    score_layers,
)
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError, StoreError
from samkv_rag.store.base import Blob, Buffer, BytesBlob, DamagedBlobError, Store, read_bytes, require_key
from samkv_rag.store.quantization import (
    KEY_GROUP_TOKENS,
    VALUE_GROUP_CHANNELS,
    dequantize_keys,
    dequantize_rows,
    num_row_groups,
    quantize_keys,
    quantize_rows,
)

FORMAT_VERSION = 7
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
_FIRST_READ_BYTES = 4 << 10
"""Holds the header of an index, and of a full chunk of few layers."""
_PIECE_BYTES = 4 << 20
_METADATA_BYTES, _ENTRY_BYTES = 800, 125
"""Of a header: about what is said of the chunk, and of each tensor."""
_MAX_HEADER_BYTES = 64 << 20
_ANCHORS_ALONE = "an index holds the KV of a chunk's anchors alone"


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


def stored_dtype(kv_dtype: str, dtype: torch.dtype, storage: str = "full") -> str:
    """What the KV of a model that computes in ``dtype`` is kept in: a dtype's name, or ``int8``.

    Raises:
        ConfigurationError: the two do not go together.
    """
    if kv_dtype == "auto":
        return "int8" if storage == "index" else _name(dtype if dtype.itemsize == 2 else torch.bfloat16)
    if (kv_dtype == "bfloat16" and dtype == torch.float16) or (kv_dtype == "float32" and dtype.itemsize == 2):
        raise ConfigurationError(
            f"kv_dtype is {kv_dtype!r}, the model computes in {_name(dtype)}, which takes no more bytes and is as "
            "exact; use 'auto' or 'int8'"
        )
    return kv_dtype


def encode_chunk(cache: ChunkCache, identity: ChunkIdentity, kv_dtype: str = "auto", storage: str = "full") -> bytes:
    """The file of ``cache``; equal bytes for equal arguments.

    Raises:
        StoreError: a value is not finite, which a quantised chunk cannot hold.
    """
    stored = stored_dtype(kv_dtype, cache.keys.dtype, storage)
    parts = _index_tensors(cache, stored) if storage == "index" else _tensors(cache, stored)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in parts.items()}
    body = {
        "format": FORMAT_VERSION,
        **asdict(identity),
        "dtype": _name(cache.keys.dtype),
        "kv_dtype": stored,
        "storage": storage,
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
    }
    # One entry of metadata: the library writes several in random order.
    return bytes(save(tensors, {_METADATA: json.dumps({"body": body, "checksum": _body_checksum(body)})}))


def encoded_bytes(shape: ChunkShape, num_tokens: int, kv_dtype: str) -> int:
    """About how many bytes :func:`encode_chunk` makes of a chunk; known without computing it."""
    stored = stored_dtype(kv_dtype, shape.dtype, shape.spec.storage)
    tensors = _expected(shape, num_tokens, stored).values()
    return _METADATA_BYTES + sum(math.prod(size) * dtype.itemsize + _ENTRY_BYTES for dtype, size in tensors)


def open_chunk(store: Store, key: str) -> StoredChunk | None:
    """Reader of what is stored under ``key``; None where nothing is.

    Raises:
        DamagedChunkError: it is not a chunk of this format, or another chunk's.
    """
    blob = store.get(key)
    chunk = None if blob is None else StoredChunk(blob)
    if chunk is not None and chunk.identity.key != key:
        raise DamagedChunkError("it is another chunk's")
    if chunk is not None and chunk.storage == "index":
        chunk.load()
    return chunk


class StoredChunk:
    """Reader of an encoded chunk; every tensor it returns is an owned copy.

    Raises:
        DamagedChunkError: not a chunk of this format.
    """

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.num_bytes = blob.size
        """Size of the whole encoded chunk."""
        self._data = blob
        self._tensors, self._body = _read_header(blob)
        data_start = min((span.start for span in self._tensors.values()), default=0)
        self.bytes_read = _FIRST_READ_BYTES + (data_start if data_start > _FIRST_READ_BYTES else 0)
        """So far, of what the store holds."""
        try:
            self.identity = _identity(self._body)
            self._dtype = _MODEL_DTYPES[self._body["dtype"]]
            self.kv_dtype = self._body["kv_dtype"]
            if self.kv_dtype not in ("int8", *_MODEL_DTYPES):
                raise ValueError(f"kv_dtype {self.kv_dtype!r}")
            self.storage: str = self._body["storage"]
            if self.storage not in ("full", "index"):
                raise ValueError(f"storage {self.storage!r}")
        except (KeyError, TypeError, ValueError, StoreError) as error:
            raise DamagedChunkError(f"its metadata is not what a writer writes ({error!r})") from error
        ids, num_tokens = self._span("token_ids"), self.identity.num_tokens
        if (ids.dtype, ids.shape) != (torch.int64, (num_tokens,)):
            raise DamagedChunkError(f"its token ids are {ids.dtype} {list(ids.shape)}, expected int64 [{num_tokens}]")

    def load(self) -> None:
        """Bring the whole chunk into memory by one request; what is read of it later is read there."""
        try:
            data = read_bytes(self.blob)
        except DamagedBlobError as error:
            raise DamagedChunkError(str(error)) from error
        self.bytes_read += len(data)
        self._data = BytesBlob(bytes(data))

    @cached_property
    def token_ids(self) -> torch.Tensor:
        return self._read("token_ids")

    def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.storage == "index":
            return self._anchors(layer, tokens)
        span = self._span(f"kv.{layer:03}")
        if tokens is not None and self.kv_dtype != "int8":
            keys, values = self._read_rows(span, tokens).to(self._dtype)
            return keys, values
        keys, values = torch.empty(2, *span.shape[1:], dtype=self._dtype)
        self.fill_layer(layer, keys, values)
        return (keys, values) if tokens is None else (keys[:, tokens], values[:, tokens])

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        if self.storage == "index":
            if values is not None:
                raise LookupError(_ANCHORS_ALONE)
            keys.copy_(self._keys("keys", layer - self._num_unscored))
            return
        span = self._span(name := f"kv.{layer:03}")
        parts = [keys] if values is None else [keys, values]
        if self.kv_dtype == "int8":
            keys.copy_(dequantize_keys(self._read(name, 0), self._read("key_scales", layer)))
            if values is not None:
                values.copy_(self.layer_values(layer))
        elif keys.dtype == span.dtype and all(part[0].is_contiguous() for part in parts):
            # From the store to its place in one call, head by head.
            self._read_into(span.start, [row for part in parts for row in part.view(torch.uint8).numpy()])
        else:
            for number, part in enumerate(parts):
                part.copy_(self._read(name, number))

    def layer_values(self, layer: int) -> torch.Tensor:
        if self.storage == "index":
            return self._rows(f"values.{layer:03}")
        values = self._read(f"kv.{layer:03}", 1)
        if self.kv_dtype == "int8":
            return dequantize_rows(values, self._read("value_scales", layer), self._dtype)
        return values.to(self._dtype)

    def summary(self) -> Summary:
        return Summary(*(self._rows(name) for name in _SUMMARY))

    # An index

    @property
    def _num_unscored(self) -> int:
        """Layers below the first that scores."""
        return self._span("anchor_keys").shape[0]

    def _anchors(self, layer: int, tokens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of those anchors that ``tokens`` names."""
        anchors = index_anchors(self.identity.num_tokens)
        if tokens is None or not bool(torch.isin(tokens, anchors).all()):
            raise LookupError(_ANCHORS_ALONE)
        places, above = torch.searchsorted(anchors, tokens), layer - self._num_unscored
        keys = self._keys("anchor_keys", layer)[:, places] if above < 0 else self._keys("keys", above)[:, tokens]
        return keys, self._rows("anchor_values", layer)[:, places]

    def _keys(self, name: str, index: int) -> torch.Tensor:
        """One layer of keys, ``[kv_heads, tokens, head_dim]``."""
        stored = self._read(name, index)
        if self.kv_dtype == "int8":
            stored = dequantize_keys(stored, self._read(f"{name}.scales", index))
        return stored.to(self._dtype)

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
        if self.storage != wanted.spec.storage:
            raise DamagedChunkError(f"its storage is {self.storage}, expected {wanted.spec.storage}")
        expected = _expected(wanted, len(ids), self.kv_dtype)
        if extra := sorted(self._tensors.keys() - expected):
            raise DamagedChunkError(f"it has {extra[0]}, which no chunk of this model has")
        for name, (dtype, shape) in expected.items():
            found = self._span(name)
            if (found.dtype, found.shape) != (dtype, shape):
                raise DamagedChunkError(f"{name} is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}")

    def _rows(self, name: str, index: int | None = None) -> torch.Tensor:
        rows = self._read(name, index)
        if self.kv_dtype == "int8":
            return dequantize_rows(rows, self._read(f"{name}.scales", index), self._dtype)
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

    def _read_rows(self, span: _Span, tokens: torch.Tensor) -> torch.Tensor:
        """``[2, kv_heads, tokens, head_dim]`` of a layer; the bytes of other tokens are not touched."""
        rows = torch.empty(*span.shape[:2], len(tokens), span.shape[3], dtype=span.dtype)
        row_bytes = span.shape[3] * span.dtype.itemsize
        heads = [span.item(kind).item(head).start for kind in range(2) for head in range(span.shape[1])]
        parts: list[tuple[int, Buffer]] = []
        for first, stop, token in _runs(tokens.tolist()):
            places = (_raw(own[first:stop]) for own in rows.flatten(0, 1))
            parts += [(start + token * row_bytes, place) for start, place in zip(heads, places, strict=True)]
        try:
            self._data.read_parts(parts)
        except DamagedBlobError as error:
            raise DamagedChunkError(str(error)) from error
        self.bytes_read += rows.nbytes
        return rows

    def _read_into(self, start: int, buffers: list[Buffer]) -> None:
        try:
            self._data.read_into(start, buffers)
        except DamagedBlobError as error:
            raise DamagedChunkError(str(error)) from error
        if self._data is self.blob:
            self.bytes_read += sum(memoryview(buffer).nbytes for buffer in buffers)

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
        if not 0 <= index < self.shape[0]:
            raise LookupError(f"{index} is not one of {self.shape[0]} layers")
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
    key_scales, value_scales = [], []
    for layer, (keys, values) in enumerate(pairs):
        key_codes, own_key_scales = quantize_keys(keys.cpu())
        value_codes, own_value_scales = quantize_rows(values.cpu(), VALUE_GROUP_CHANNELS)
        tensors[f"kv.{layer:03}"] = torch.stack((key_codes, value_codes))
        key_scales.append(own_key_scales)
        value_scales.append(own_value_scales)
    tensors |= {"key_scales": torch.stack(key_scales), "value_scales": torch.stack(value_scales)}
    for name, values in rows.items():
        tensors[name], tensors[f"{name}.scales"] = quantize_rows(values.cpu())
    return tensors


def _index_tensors(cache: ChunkCache, stored: str) -> dict[str, torch.Tensor]:
    scored, anchors = score_layers(cache.keys.shape[0]), index_anchors(cache.num_tokens)
    keys = {"keys": cache.keys[scored.start : scored.stop], "anchor_keys": cache.keys[: scored.start, :, anchors]}
    ranking = ranking_layer(cache.keys.shape[0])
    rows = {"anchor_values": cache.values[: scored.stop, :, anchors], f"values.{ranking:03}": cache.values[ranking]}
    tensors = {"token_ids": cache.token_ids}
    if stored != "int8":
        return tensors | {name: tensor.to(_MODEL_DTYPES[stored]) for name, tensor in (keys | rows).items()}
    for name, tensor in keys.items():
        tensors[name], scales = quantize_keys(tensor.cpu())
        tensors[f"{name}.scales"] = scales.movedim(0, 1)
    for name, tensor in rows.items():
        tensors[name], tensors[f"{name}.scales"] = quantize_rows(tensor.cpu())
    return tensors


def _expected_index(
    wanted: ChunkShape, num_tokens: int, kv_dtype: str
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """What ``_index_tensors`` makes of a chunk of ``wanted``."""
    scored, num_anchors = score_layers(wanted.num_layers), len(index_anchors(num_tokens))
    heads, dim = wanted.num_kv_heads, wanted.head_dim
    keys = {"keys": (len(scored), heads, num_tokens, dim), "anchor_keys": (scored.start, heads, num_anchors, dim)}
    rows: dict[str, tuple[int, ...]] = {"anchor_values": (scored.stop, heads, num_anchors, dim)}
    rows[f"values.{ranking_layer(wanted.num_layers):03}"] = (heads, num_tokens, dim)
    stored = torch.int8 if kv_dtype == "int8" else _MODEL_DTYPES[kv_dtype]
    expected = {name: (stored, shape) for name, shape in (keys | rows).items()}
    if kv_dtype == "int8":
        for name, (layers, _, tokens, _) in keys.items():
            expected[f"{name}.scales"] = torch.bfloat16, (layers, 2, heads, -(-tokens // KEY_GROUP_TOKENS), dim)
        for name, shape in rows.items():
            expected[f"{name}.scales"] = torch.bfloat16, (*shape[:-1], num_row_groups(shape[-1]))
    return {"token_ids": (torch.int64, (num_tokens,)), **expected}


def _expected(wanted: ChunkShape, num_tokens: int, kv_dtype: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """What a chunk of ``wanted`` is stored as: every tensor's dtype and shape."""
    if wanted.spec.storage == "index":
        return _expected_index(wanted, num_tokens, kv_dtype)
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


def _runs(tokens: list[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of neighbours among ``tokens``, which rise: where in the list each begins and ends, and its first token."""
    for _, group in groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0]):
        run = list(group)
        yield run[0][0], run[-1][0] + 1, run[0][1]


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
