"""The safetensors container: a header of JSON, then the tensors' bytes one after another.

Own, and small: the library writes its metadata in random order and reads only files. Here equal chunks
are equal bytes, layers lie in order, and a part of any tensor is read from wherever the bytes are.
``docs/format.md`` specifies it byte by byte; the library reads what is written here, and the reverse.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samkv_rag.store.format.byte_source import ByteSource, DamagedBytesError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_ALIGNMENT = 64
"""The header is padded so that the first tensor begins at a multiple of this; of bytes."""
_MAX_HEADER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class TensorSpan:
    """Where a tensor lies, in bytes from the file's beginning, and how its bytes are read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    def item(self, *index: int) -> TensorSpan:
        """The part of the tensor at ``index`` of its first dimensions, which is contiguous."""
        start, num_bytes = self.start, self.stop - self.start
        for i, length in zip(index, self.shape, strict=False):
            num_bytes //= length
            start += i * num_bytes
        return TensorSpan(self.dtype, self.shape[len(index) :], start, start + num_bytes)


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    metadata: dict[str, str]
    tensors: dict[str, TensorSpan]


def pack(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A whole file of ``tensors``, contiguous and on the host, in their order; equal bytes for equal arguments."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, tensor in tensors.items():
        span = [offset, offset + tensor.nbytes]
        table[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *map(raw_bytes, tensors.values())])


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the host, in memory order; no copy."""
    data: memoryview = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
    return data


def read_header(source: ByteSource) -> Header:
    """Read and check a file's header: afterwards every tensor lies within the file, and nothing else does.

    Raises:
        DamagedBytesError: it is not a file of this kind, or not all of it.
    """
    length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
    data_start = _LENGTH_BYTES + length
    if length > _MAX_HEADER_BYTES:
        raise DamagedBytesError(f"its header would have {length} bytes, the limit is {_MAX_HEADER_BYTES}")
    try:
        text = bytes(source.read(_LENGTH_BYTES, data_start)).decode().rstrip(" ")
        table = json.loads(text)
        metadata = table.pop("__metadata__", {})
        tensors = {name: _span(described, data_start) for name, described in table.items()}
        if text[-1] != "}" or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("not as it was written")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedBytesError(f"unreadable header ({type(error).__name__}: {error})") from error
    _require_seamless(tensors, data_start, source.size)
    return Header(metadata, tensors)


def _span(described: dict[str, Any], data_start: int) -> TensorSpan:
    dtype, shape, (start, stop) = _DTYPES[described["dtype"]], described["shape"], described["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"shape {shape} at {start} to {stop}")
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"shape {shape} in {stop - start} bytes")
    return TensorSpan(dtype, tuple(shape), data_start + start, data_start + stop)


def _require_seamless(tensors: Mapping[str, TensorSpan], data_start: int, size: int) -> None:
    expected = data_start
    for span in sorted(tensors.values(), key=lambda span: (span.start, span.stop)):
        if span.start != expected:
            raise DamagedBytesError(f"a tensor begins at byte {span.start}, expected {expected}")
        expected = span.stop
    if expected != size:
        raise DamagedBytesError(f"its tensors end at byte {expected}, the file at {size}")
