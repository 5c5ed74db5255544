"""Writing a chunk cache as the bytes of a chunk file; ``docs/format.md`` specifies them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import xxhash

from samkv_rag.chunk_cache import ChunkCache, Means
from samkv_rag.config import KVDtype
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.format.container import pack, raw_bytes
from samkv_rag.store.format.quantization import QUANTIZATIONS, QuantizedLayer, quantize_layer, quantize_rows

FORMAT_VERSION = "2"
SUMMARIES = tuple(Means.__annotations__)
_RESERVED = ("format", "fingerprint", "text_digest", "layout", "dtype", "kv_dtype", "checksums", "own_checksum")


def encode_chunk(
    cache: ChunkCache, digest: str, kv_dtype: KVDtype | None = None, extra: Mapping[str, str] | None = None
) -> bytes:
    """The chunk file of ``cache``, whose text has ``digest``; equal bytes for equal arguments.

    ``kv_dtype`` says in what to keep it; None: as ``cache.kv_dtype`` says. ``extra`` is further
    metadata, which readers return as it is.

    Raises:
        ValueError: a name in ``extra`` is one of the format's own.
        ConfigurationError: the cache's dtype does not go with ``kv_dtype``.
        StoreError: a value is not finite, which a quantised chunk cannot hold.
    """
    extra = dict(extra or {})
    if taken := sorted(set(extra) & set(_RESERVED)):
        raise ValueError(f"metadata {', '.join(taken)} is the format's own; use another name")
    dtype = cache.keys.dtype
    stored = stored_dtype(kv_dtype or cache.kv_dtype, dtype)
    tensors = {name: tensor.to("cpu").contiguous() for name, tensor in _encoded(cache, stored).items()}
    metadata = {
        "format": FORMAT_VERSION,
        "fingerprint": cache.fingerprint,
        "text_digest": digest,
        "layout": cache.layout.to_json(),
        "dtype": dtype_name(dtype),
        "kv_dtype": stored,
        **extra,
        "checksums": json.dumps({name: _checksum(tensor) for name, tensor in tensors.items()}),
    }
    metadata["own_checksum"] = metadata_checksum(metadata)
    return pack(tensors, metadata)


def stored_dtype(kv_dtype: KVDtype, dtype: torch.dtype) -> str:
    """What the KV of a model that computes in ``dtype`` is kept in: a dtype's name, ``int8`` or ``int4``.

    Raises:
        ConfigurationError: the two do not go together.
    """
    if kv_dtype == "auto":
        return dtype_name(dtype)
    if kv_dtype == "bfloat16" and dtype == torch.float16:
        raise ConfigurationError(
            "kv_dtype is 'bfloat16', the model computes in float16, which takes the same bytes and is more exact; "
            "use 'auto', 'int8' or 'int4'"
        )
    return kv_dtype


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def metadata_checksum(metadata: Mapping[str, str]) -> str:
    """Checksum of all metadata but itself."""
    covered = {name: value for name, value in metadata.items() if name != "own_checksum"}
    return xxhash.xxh3_64_hexdigest(json.dumps(covered, sort_keys=True).encode())


def tensor_checksum(dtype: torch.dtype, shape: tuple[int, ...], pieces: Iterable[Any]) -> str:
    """Checksum of a tensor's bytes (buffers, one after another) and of how they are read."""
    hasher = xxhash.xxh3_64(f"{dtype}{list(shape)}".encode())
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def _checksum(tensor: torch.Tensor) -> str:
    return tensor_checksum(tensor.dtype, tuple(tensor.shape), [raw_bytes(tensor)])


def _encoded(cache: ChunkCache, stored: str) -> dict[str, torch.Tensor]:
    """Tensors in the order in which a pass reads them."""
    rows: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]
    if stored in QUANTIZATIONS:
        layers, rows = _quantized_layers(cache, stored), _quantized_rows
    else:
        kept_in = getattr(torch, stored)
        cast = cache.keys.dtype != kept_in
        layers = _plain_layers(cache, kept_in)

        def rows(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
            return {name: tensor.to(kept_in) if cast else tensor}

    tensors = {"token_ids": cache.token_ids, **layers}
    if cache.hidden is not None:
        tensors |= rows("hidden", cache.hidden)
    for name in SUMMARIES:
        tensors |= rows(name, getattr(cache.summary, name))
    return tensors


def _plain_layers(cache: ChunkCache, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    pairs = zip(cache.keys, cache.values, strict=True)
    return {f"kv.{layer}": torch.stack(pair).to(dtype) for layer, pair in enumerate(pairs)}


def _quantized_layers(cache: ChunkCache, stored: str) -> dict[str, torch.Tensor]:
    form = QUANTIZATIONS[stored]
    pairs = zip(cache.keys, cache.values, strict=True)
    layers: list[QuantizedLayer] = [quantize_layer(keys.cpu(), values.cpu(), form) for keys, values in pairs]
    return {
        **{f"kv.{number}": layer.codes for number, layer in enumerate(layers)},
        "key_scales": torch.stack([layer.key_scales for layer in layers]),
        "value_scales": torch.stack([layer.value_scales for layer in layers]),
    }


def _quantized_rows(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    codes, scales = quantize_rows(tensor.cpu())
    return {name: codes, f"{name}.scales": scales}
