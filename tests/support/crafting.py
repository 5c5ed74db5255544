"""Chunk files of random KV, and forged ones with correct checksums."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
import xxhash

from samkv_rag.chunk_cache import ChunkCache, ChunkShape, Summary, SummarySpec
from samkv_rag.store.base import BytesBlob
from samkv_rag.store.codec import ChunkIdentity, StoredChunk, encode_chunk

FULL = ChunkShape(6, 4, 2, 16, 512, torch.float32, SummarySpec(8, 8, 16))
INDEX = replace(FULL, spec=SummarySpec(8, 8, 16, storage="index"))
IDENTITY = ChunkIdentity("f" * 64, "d" * 64, 100, "The lamp burns p", "lit at sunset 漢🦭", 70)
ABSENT = object()
"""Marks a tensor or a metadata field to omit from the crafted file."""


def cache(shape: ChunkShape = FULL, num_tokens: int = 70) -> ChunkCache:
    """A chunk's cache of random numbers, equal for equal arguments."""
    torch.manual_seed(0)
    layers, heads, dim = shape.num_layers, shape.num_kv_heads, shape.head_dim
    keys, values = torch.randn(2, layers, heads, num_tokens, dim).to(shape.dtype)
    blocks = torch.randn(layers, heads, shape.spec.num_blocks(num_tokens), dim).to(shape.dtype)
    means = Summary(blocks, keys[:, :, 0], torch.randn(layers, shape.num_heads, dim).to(shape.dtype))
    return ChunkCache(torch.arange(num_tokens), keys, values, means)


def encoded(kv_dtype: str = "auto", shape: ChunkShape = FULL, num_tokens: int = 70) -> bytes:
    """The chunk file of :func:`cache`."""
    identity = replace(IDENTITY, num_tokens=num_tokens)
    return encode_chunk(cache(shape, num_tokens), identity, kv_dtype, shape.spec.storage)


def read(data: bytes) -> StoredChunk:
    """A reader of a chunk file in memory."""
    return StoredChunk(BytesBlob(data))


def rewritten(data: bytes, tensors: dict[str, Any] | None = None, **body: Any) -> bytes:
    """Return the chunk file ``data`` with other tensors and metadata, and new checksums."""
    parts = _without_absent(safetensors.torch.load(data) | (tensors or {}))
    (length,) = struct.unpack("<Q", data[:8])
    document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["samkv"])
    checksums = {name: _checksum(tensor) for name, tensor in parts.items()}
    changed = _without_absent(document["body"] | {"checksums": checksums} | body)
    return bytes(safetensors.torch.save(parts, {"samkv": _document(changed)}))


def with_token_ids_of_shape(data: bytes, shape: list[int]) -> bytes:
    """Return the chunk file ``data`` with token ids of an empty shape, written straight into the header."""
    emptied = rewritten(data, {"token_ids": torch.arange(0)})
    (length,) = struct.unpack("<Q", emptied[:8])
    header = json.loads(emptied[8 : 8 + length])
    header["token_ids"]["shape"] = shape
    body = json.loads(header["__metadata__"]["samkv"])["body"]
    body["checksums"]["token_ids"] = xxhash.xxh3_64_hexdigest(f"torch.int64{shape}".encode())
    header["__metadata__"]["samkv"] = _document(body)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + emptied[8 + length :]


def _without_absent(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not ABSENT}


def _document(body: dict[str, Any]) -> str:
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"body": body, "checksum": checksum})


def _checksum(tensor: torch.Tensor) -> str:
    hasher = xxhash.xxh3_64(f"{tensor.dtype}{list(tensor.shape)}".encode())
    hasher.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def verify(chunk: StoredChunk, shape: ChunkShape, token_ids: list[int] | None = None) -> None:
    """Make all checks of an engine at once."""
    chunk.require(shape, token_ids)
    chunk.verify()
