"""Encodes a chunk cache as a safetensors file, and reads it back tensor by tensor; see ``docs/format.md``.

Tensors: ``token_ids`` [tokens]; ``layer.<layer>.keys`` and ``layer.<layer>.values`` [kv_heads, tokens, head_dim], for
all layers in full storage and for the selecting layers in an index. Full storage adds the summary, an index the
``anchor_keys`` and ``anchor_values`` up to the last scoring layer. int8 tensors have their scales beside them.
Metadata: one JSON document with the chunk's identity and an XXH3-64 checksum of every tensor and of the document.

The safetensors library writes the files. Reading is our own, because it copies each layer straight to its place in the
assembled prompt. A tensor is compared with its checksum when it is first read.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

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
from samkv_rag.forking import cached_property
from samkv_rag.store.base import Blob, Buffer, BytesBlob, Store, read_bytes, require_key
from samkv_rag.store.quantization import (
    KEY_GROUP_TOKENS,
    dequantize_keys,
    dequantize_rows,
    num_row_groups,
    quantize_keys,
    quantize_rows,
)

FORMAT_VERSION = 8
PREFIX_CHARS = 16
"""Length of a text's prefix and suffix, by which it is found in prompts; shorter texts are not cached."""
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
_FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
_METADATA_BYTES, _ENTRY_BYTES = 800, 125
"""Approximate size of a header: its metadata, and the entry of each tensor."""
_MAX_HEADER_BYTES = 64 << 20
_PAGE_BYTES = 4096
_ANCHORS_ALONE = "an index has the KV of a chunk's anchors only"


@dataclass(frozen=True)
class ChunkIdentity:
    """The identity of a chunk. Its file contains it, so that a catalog can be rebuilt."""

    fingerprint: str
    """Model, tokenizer, summary and tenant."""
    digest: str
    num_chars: int
    prefix: str
    suffix: str
    """The text's first and last characters."""
    num_tokens: int
    namespace: str = ""
    model: str = ""
    """The model's own fingerprint, equal for all tenants."""
    model_name: str = ""

    @property
    def key(self) -> str:
        return chunk_key(self.fingerprint, self.digest)


def stored_dtype(kv_dtype: str, dtype: torch.dtype, storage: str = "full") -> str:
    """Return the type in which the KV of a model of ``dtype`` is stored: a dtype's name, or ``int8``."""
    if kv_dtype == "auto":
        return "int8" if storage == "index" else _name(dtype if dtype.itemsize == 2 else torch.bfloat16)
    if (kv_dtype == "bfloat16" and dtype == torch.float16) or (kv_dtype == "float32" and dtype.itemsize == 2):
        raise ConfigurationError(
            f"kv_dtype is {kv_dtype!r}, the model computes in {_name(dtype)}, which takes no more bytes and is as "
            "exact; use 'auto' or 'int8'"
        )
    return kv_dtype


def encode_chunk(cache: ChunkCache, identity: ChunkIdentity, kv_dtype: str = "auto", storage: str = "full") -> bytes:
    """Return the file of ``cache``; equal arguments give equal bytes."""
    stored = stored_dtype(kv_dtype, cache.keys.dtype, storage)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _contents(cache, storage).items():
        if name == "token_ids":
            tensors[name] = tensor
        elif stored != "int8":
            tensors[name] = tensor.to(_FLOATS[stored])
        else:
            quantize = quantize_keys if _is_by_channel(name) else quantize_rows
            tensors[name], tensors[f"{name}.scales"] = quantize(tensor.cpu())
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not _is_finite(tensor):  # a reader would refuse it
            raise StoreError(
                f"{name} of the KV holds a value that is not finite; load the model in bfloat16 or float32, or give "
                "another kv_dtype"
            )
    body = {
        "format": FORMAT_VERSION,
        **asdict(identity),
        "dtype": _name(cache.keys.dtype),
        "kv_dtype": stored,
        "storage": storage,
        "checksums": {name: _checksum(tensor) for name, tensor in tensors.items()},
    }
    # One metadata entry only: the library writes several in random order.
    return bytes(save(tensors, {_METADATA: json.dumps({"body": body, "checksum": _body_checksum(body)})}))


def encoded_bytes(shape: ChunkShape, num_tokens: int, kv_dtype: str, num_layers: int | None = None) -> int:
    """Estimate the size of a chunk's file, or of its part up to the end of the first ``num_layers`` layers."""
    stored = stored_dtype(kv_dtype, shape.dtype, shape.spec.storage)
    expected = _expected(shape, num_tokens, stored)
    sizes = {name: math.prod(size) * dtype.itemsize for name, (dtype, size) in expected.items()}
    above = range(shape.num_layers if num_layers is None else num_layers, shape.num_layers)
    behind = sum(sizes.get(name, 0) for layer in above for name in _layer(layer))
    return _METADATA_BYTES + len(sizes) * _ENTRY_BYTES + sum(sizes.values()) - behind


def open_chunk(store: Store, key: str, num_bytes: int | None = None, is_use: bool = True) -> StoredChunk | None:
    """Return a reader of the chunk stored under ``key``, or None.

    Give ``num_bytes`` if you expect to read the first ``num_bytes`` only. Unless ``is_use``, the chunk is not used more
    recently then.
    """
    get = store.get if is_use else store.peek
    blob = get(key) if num_bytes is None else store.get_beginning(key, num_bytes)
    if blob is None:
        return None
    chunk = StoredChunk(blob)
    if chunk.identity.key != key:
        raise DamagedChunkError("it is another chunk's")
    return chunk


class StoredChunk:
    """Reads an encoded chunk. Every tensor that it returns is a copy whose checksum was compared."""

    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self._data = blob
        self.tensors, body = _read_header(blob)
        self.bytes_read = min((span.start for span in self.tensors.values()), default=0)  # the header
        """Bytes read from the store so far."""
        self.checked: set[str] = set()
        """Names of tensors whose checksum was compared. The next reader of the same blob may reuse the set."""
        self._latest: tuple[torch.Tensor, _Rows] | None = None
        try:
            self.identity = _identity(body)
            self._dtype, self._checksums = _FLOATS[body["dtype"]], body["checksums"]
            self.kv_dtype, self.storage = body["kv_dtype"], body["storage"]
            if self.kv_dtype not in ("int8", *_FLOATS) or self.storage not in ("full", "index"):
                raise ValueError(f"kv_dtype {self.kv_dtype!r}, storage {self.storage!r}")
            if self._checksums.keys() != self.tensors.keys():
                raise ValueError("tensors other than those of its checksums")
        except (KeyError, TypeError, ValueError, AttributeError, StoreError) as error:
            raise DamagedChunkError(f"its metadata is not what a writer writes ({error!r})") from error
        ids, num_tokens = self.tensors.get("token_ids"), self.identity.num_tokens
        if ids is None or (ids.dtype, ids.shape) != (torch.int64, (num_tokens,)):
            raise DamagedChunkError(f"its token ids are {ids}, expected int64 [{num_tokens}]")

    def load(self) -> None:
        """Load the whole chunk into memory by one request; later reads use that copy."""
        self._data = BytesBlob(read_bytes(self.blob))
        self.bytes_read += self.blob.size

    @cached_property
    def token_ids(self) -> torch.Tensor:
        return self._read("token_ids")["token_ids"]

    @property
    def has_all_kv(self) -> bool:
        return self.storage == "full" and self._data.is_near

    def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.storage == "index":
            return self._anchors(layer, tokens)
        keys, values = self._decoded(*_layer(layer), tokens=tokens)
        return keys.to(self._dtype), values.to(self._dtype)

    def rows(self, layers: range, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.storage == "index":
            raise LookupError(_ANCHORS_ALONE)
        for pair in map(_layer, layers):
            if not self.checked.issuperset(pair):
                self._read(*pair)  # checks them, without the whole of a long chunk in memory
        names = itertools.chain(*zip(*map(_layer, layers), strict=True))  # of all keys, then of all values
        keys, values = torch.stack(self._decoded(*names, tokens=tokens)).to(self._dtype).chunk(2)
        return keys, values

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        if self.storage == "index" and values is not None:  # all tokens of a short chunk are anchors
            anchors = self._anchors(layer, torch.arange(self.identity.num_tokens))
            for place, found in zip((keys, values), anchors, strict=True):
                place.copy_(found)
            return
        places = dict(zip(_layer(layer), [keys] if values is None else [keys, values], strict=False))
        if keys.dtype == self.tensors[_layer(layer)[0]].dtype and all(p[0].is_contiguous() for p in places.values()):
            self._fill(places)  # straight from the store to its place, by one request
            return
        for place, found in zip(places.values(), self._decoded(*places), strict=True):
            place.copy_(found)

    def layer_values(self, layer: int) -> torch.Tensor:
        return self._decoded(_layer(layer)[1])[0].to(self._dtype)

    def summary(self) -> Summary:
        return Summary(*(means.to(self._dtype) for means in self._decoded(*_SUMMARY)))

    def _anchors(self, layer: int, tokens: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the anchors ``tokens`` from an index."""
        anchors, (below, values) = index_anchors(self.identity.num_tokens), self._anchor_kv
        if tokens is None or not bool(torch.isin(tokens, anchors).all()):
            raise LookupError(_ANCHORS_ALONE)
        places = torch.searchsorted(anchors, tokens)
        if layer < len(below):
            return below[layer][:, places], values[layer][:, places]
        return self._decoded(_layer(layer)[0], tokens=tokens)[0].to(self._dtype), values[layer][:, places]

    @cached_property
    def _anchor_kv(self) -> list[torch.Tensor]:
        return [states.to(self._dtype) for states in self._decoded("anchor_keys", "anchor_values")]

    # Checking

    def verify(self) -> None:
        """Read every tensor and compare its checksum."""
        self.checked.clear()
        for name in self.tensors:
            self._read(name)

    def require(self, wanted: ChunkShape, token_ids: list[int] | None = None) -> None:
        """Compare dtypes and shapes with the model's, and the token ids with the text's.

        A forged file can have correct checksums.
        """
        if self._dtype != wanted.dtype:
            raise DamagedChunkError(f"its dtype is {self._dtype}, the model's {wanted.dtype}")
        ids = self.token_ids
        if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= wanted.vocab_size:
            raise DamagedChunkError(f"a token id is outside of 0 to {wanted.vocab_size - 1}")
        if self.storage != wanted.spec.storage:
            raise DamagedChunkError(f"its storage is {self.storage}, expected {wanted.spec.storage}")
        expected = _expected(wanted, len(ids), self.kv_dtype)
        if extra := sorted(self.tensors.keys() - expected):
            raise DamagedChunkError(f"it has {extra[0]}, which no chunk of this model has")
        for name, (dtype, shape) in expected.items():
            if (found := self.tensors.get(name)) is None or (found.dtype, found.shape) != (dtype, shape):
                raise DamagedChunkError(f"{name} is {found}, expected {dtype} {list(shape)}")
        if token_ids is not None and ids.tolist() != token_ids:
            raise DamagedChunkError("its token ids are not those of its text")

    # Reading

    def _decoded(self, *names: str, tokens: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return tensors of all tokens or some; quantised ones become float32."""
        scaled = [f"{name}.scales" for name in names] if self.kv_dtype == "int8" else []
        rows = None if tokens is None else self._runs_of(tokens)
        if rows is not None and self.checked.issuperset(names) and _is_sparse(rows, self.tensors[names[0]]):
            stored = self._read_rows(names, rows) | self._read(*scaled)
        else:  # a checksum needs the whole tensor, too
            stored = self._read(*names, *scaled)
            if tokens is not None:
                stored |= {name: stored[name][:, tokens] for name in names}
        decoded = []
        for name in names:
            if (scales := stored.get(f"{name}.scales")) is None:
                decoded.append(stored[name])
            elif _is_by_channel(name):
                decoded.append(dequantize_keys(stored[name], scales, tokens))
            else:
                decoded.append(dequantize_rows(stored[name], scales if tokens is None else scales[:, tokens]))
        return decoded

    def _read(self, *names: str) -> dict[str, torch.Tensor]:
        """Return whole tensors as they are stored, by one request."""
        found = {name: torch.empty(self.tensors[name].shape, dtype=self.tensors[name].dtype) for name in names}
        self._fill(found)
        return found

    def _fill(self, places: dict[str, torch.Tensor]) -> None:
        """Read whole tensors into ``places`` by one request and check new ones. Each head must be contiguous."""
        if not places:
            return
        parts: list[tuple[int, Buffer]] = []
        for name, place in places.items():
            start = self.tensors[name].start
            for buffer in _buffers(place):
                parts.append((start, buffer))
                start += buffer.nbytes
        self._request(parts)
        for name, place in places.items():
            if name in self.checked:
                continue
            if _checksum(place) != self._checksums[name]:
                raise DamagedChunkError(f"the checksum of {name} differs")
            if not _is_finite(place):
                raise DamagedChunkError(f"{name} holds a value that is not finite")
            self.checked.add(name)

    def _read_rows(self, names: Sequence[str], rows: _Rows) -> dict[str, torch.Tensor]:
        """Return ``[kv_heads, tokens, head_dim]`` of each name, all of one shape, without reading other tokens."""
        span = self.tensors[names[0]]
        heads, num_tokens, head_dim = span.shape
        found = torch.empty(len(names), heads, len(rows.tokens), head_dim, dtype=span.dtype)
        (buffer,) = _buffers(found)
        row_bytes, own, parts = head_dim * span.dtype.itemsize, 0, []
        for name, head in itertools.product(names, range(heads)):
            start = self.tensors[name].start + head * num_tokens * row_bytes
            for first, last in rows.runs:
                place = buffer[(own + first) * row_bytes : (own + last) * row_bytes]
                parts.append((start + rows.tokens[first] * row_bytes, place))
            own += len(rows.tokens)
        self._request(parts)
        return dict(zip(names, found, strict=True))

    def _runs_of(self, tokens: torch.Tensor) -> _Rows:
        """Return ``tokens`` as runs; computed once for all layers, whose readers pass the same object."""
        known = self._latest
        if known is None or known[0] is not tokens:
            numbers, breaks = tokens.tolist(), (torch.nonzero(tokens.diff() != 1).flatten() + 1).tolist()
            self._latest = known = tokens, _Rows(numbers, list(pairwise([0, *breaks, len(numbers)])))
        return known[1]

    def _request(self, parts: list[tuple[int, Buffer]]) -> None:
        self._data.read(parts)
        if self._data is self.blob:
            self.bytes_read += sum(buffer.nbytes for _, buffer in parts)


class _Rows(NamedTuple):
    """Tokens to read, ascending."""

    tokens: list[int]
    runs: list[tuple[int, int]]
    """Which of them are adjacent, from and to."""


class _Span(NamedTuple):
    """The position of a tensor in the file, in bytes, and its type."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def _read_header(blob: Blob) -> tuple[dict[str, _Span], dict[str, Any]]:
    """Read and check the header: the tensors must fill the rest of the file without gaps."""
    try:
        length = int.from_bytes(read_bytes(blob, 0, 8), "little")
        if length > min(_MAX_HEADER_BYTES, blob.size - 8):
            raise DamagedChunkError(f"its header would have {length} bytes of {blob.size}")
        table = json.loads(read_bytes(blob, 8, 8 + length).decode())
        document = json.loads(table.pop("__metadata__")[_METADATA])
        tensors = {name: _span(described, 8 + length) for name, described in table.items()}
        body = document["body"]
        if document["checksum"] != _body_checksum(body):
            raise DamagedChunkError("the checksum of its metadata differs")
        if body["format"] != FORMAT_VERSION:
            raise DamagedChunkError(f"its format is {body['format']!r}, expected {FORMAT_VERSION}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
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
    """Return the identity that a file states; its fields must have the right types."""
    identity = ChunkIdentity(**{field.name: body[field.name] for field in fields(ChunkIdentity)})
    for field in fields(identity):
        value = body[field.name]
        if type(value).__name__ != field.type or (type(value) is int and not 0 <= value < 2**63):
            raise ValueError(f"{field.name} {value!r:.80}")
        str(value).encode()  # JSON can contain half a surrogate pair
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


def _layer(layer: int) -> tuple[str, str]:
    """Return the names of a layer's keys and values."""
    return f"layer.{layer:03}.keys", f"layer.{layer:03}.values"


def _is_by_channel(name: str) -> bool:
    """Whether a tensor is quantised as keys are, not row by row."""
    return name.endswith(".keys") or name == "anchor_keys"


def _contents(cache: ChunkCache, storage: str) -> dict[str, torch.Tensor]:
    """Return the tensors to store, in their original dtype."""
    num_layers = cache.keys.shape[0]
    if storage == "full":
        with_keys = with_values = range(num_layers)
        more = {name: getattr(cache.means, name) for name in _SUMMARY}
    else:
        with_keys, ranking = score_layers(num_layers), ranking_layer(num_layers)
        with_values, anchors = range(ranking, ranking + 1), index_anchors(cache.num_tokens)
        more = {"anchor_keys": cache.keys[: with_keys.start, :, anchors]}
        more["anchor_values"] = cache.values[: with_keys.stop, :, anchors]
    keys = {_layer(layer)[0]: cache.keys[layer] for layer in with_keys}
    values = {_layer(layer)[1]: cache.values[layer] for layer in with_values}
    return {"token_ids": cache.token_ids, **keys, **values, **more}


@lru_cache(1024)
def _expected(wanted: ChunkShape, num_tokens: int, kv_dtype: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the dtype and shape of every tensor in the file of a chunk."""

    def like(*shape: int) -> torch.Tensor:
        return torch.empty(1).expand(shape)  # takes no memory

    layers, heads, dim = wanted.num_layers, wanted.num_kv_heads, wanted.head_dim
    blocks = like(layers, heads, wanted.spec.num_blocks(num_tokens), dim)
    means = Summary(blocks, like(layers, heads, dim), like(layers, wanted.num_heads, dim))
    kv = like(layers, heads, num_tokens, dim)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    contents = _contents(ChunkCache(torch.arange(num_tokens), kv, kv, means), wanted.spec.storage)
    for name, shape in ((name, tuple(tensor.shape)) for name, tensor in contents.items()):
        if name == "token_ids":
            expected[name] = torch.int64, shape
        elif kv_dtype != "int8":
            expected[name] = _FLOATS[kv_dtype], shape
        else:
            groups = (2, *shape[:-2], -(-shape[-2] // KEY_GROUP_TOKENS), dim)
            scales = groups if _is_by_channel(name) else (*shape[:-1], num_row_groups(dim))
            expected |= {name: (torch.int8, shape), f"{name}.scales": (torch.bfloat16, scales)}
    return expected


def _is_sparse(rows: _Rows, span: _Span) -> bool:
    """Whether the runs are further apart than a page, the least that a disk reads."""
    return span.shape[1] * span.shape[2] * span.dtype.itemsize > len(rows.runs) * _PAGE_BYTES


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(map(math.isfinite, torch.aminmax(tensor)))  # many times faster than isfinite on every value


def _checksum(tensor: torch.Tensor) -> str:
    """Return a checksum of a tensor's dtype, shape and bytes."""
    hasher = xxhash.xxh3_64(f"{tensor.dtype}{list(tensor.shape)}".encode())
    for buffer in _buffers(tensor):
        hasher.update(buffer)
    return hasher.hexdigest()


def _body_checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def _buffers(tensor: torch.Tensor) -> list[Buffer]:
    """Return views of the bytes of a tensor on the host that is contiguous, or whose items are."""
    if tensor.is_contiguous():
        return [tensor.detach().reshape(-1).view(torch.uint8).numpy().data]
    return list(tensor.view(torch.uint8).numpy())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
