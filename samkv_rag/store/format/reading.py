"""Reading a chunk file, layer by layer; ``docs/format.md`` specifies it.

Tensors: ``token_ids`` [tokens]; ``kv.<layer>`` [2, kv_heads, tokens, head_dim], keys then values; ``hidden``
where there is one; ``block_mean_keys``, ``anchor_mean_key``, ``local_mean_query``; where they are quantised,
their scales beside them. Readers return them in the model's dtype.
Metadata: format version, fingerprint, text digest, layout, dtypes, an XXH3-64 checksum of every tensor's
dtype, shape and bytes, one of the metadata itself, and what the store adds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch

from samkv_rag.chunk_cache import Layout, Means, chunk_key
from samkv_rag.exceptions import StoreError
from samkv_rag.store.format.byte_source import Buffer, ByteSource, DamagedBytesError, FileBytes, MemoryBytes
from samkv_rag.store.format.container import TensorSpan, raw_bytes, read_header
from samkv_rag.store.format.encoding import (
    FORMAT_VERSION,
    SUMMARIES,
    dtype_name,
    metadata_checksum,
    tensor_checksum,
)
from samkv_rag.store.format.quantization import QUANTIZATIONS, QuantizedLayer, dequantize_layer, dequantize_rows

_PIECE_BYTES = 4 << 20
_READABLE_VERSIONS = ("1", "2")
_DTYPES = {dtype_name(dtype): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)}


class DamagedFileError(StoreError):
    """The file is not what it should be; the text says how."""


class NewerFormatError(DamagedFileError):
    """The file is of a format version that this release does not know; it may well be whole."""


class EncodedReader:
    """Reader of an encoded chunk; every tensor it returns is an owned copy.

    ``fingerprint`` and ``key`` are what the chunk must have; None: any.

    Raises:
        DamagedFileError: not a chunk of this format, fingerprint and key.
    """

    def __init__(self, source: ByteSource, fingerprint: str | None, key: str | None) -> None:
        self._source = source
        try:
            header = read_header(source)
        except (DamagedBytesError, OSError) as error:
            raise DamagedFileError(f"unreadable ({error})") from error
        self.metadata: Mapping[str, str] = header.metadata
        self._tensors = header.tensors
        self._require_format()
        self._require(fingerprint, key)

    @property
    def fingerprint(self) -> str:
        """Who computed it."""
        return self.metadata["fingerprint"]

    @property
    def text_digest(self) -> str:
        """Digest of the chunk's text."""
        return self.metadata["text_digest"]

    @property
    def key(self) -> str:
        """Store key of the chunk."""
        return chunk_key(self.fingerprint, self.text_digest)

    @property
    def num_bytes(self) -> int:
        """Size of the whole encoded chunk."""
        return self._source.size

    @cached_property
    def layout(self) -> Layout:
        """See :class:`ChunkReader`."""
        return Layout.from_json(self.metadata["layout"])

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """See :class:`ChunkReader`."""
        return self._read(self._span("token_ids"))

    @cached_property
    def kv_dtype(self) -> str:
        """What the KV is stored in: a dtype's name, ``int8`` or ``int4``."""
        # Version 1 knew no other than the model's own.
        return self.metadata.get("kv_dtype") or dtype_name(self._span("kv.0").dtype)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the model computes in, and this reader returns."""
        return _DTYPES[self.metadata.get("dtype") or self.kv_dtype]

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`ChunkReader`."""
        shape = self._span(f"kv.{layer}").shape[-3:]
        keys, values = torch.empty(2, *shape, dtype=self.dtype)
        self.fill_layer(layer, keys, values)
        return keys, values

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """See :class:`ChunkReader`."""
        span = self._span(f"kv.{layer}")
        if self.kv_dtype in QUANTIZATIONS:
            scales = [self._read(self._span(name).item(layer)) for name in ("key_scales", "value_scales")]
            stored = QuantizedLayer(self._read(span), *scales)
            dequantize_layer(stored, QUANTIZATIONS[self.kv_dtype], keys, values)
        elif keys.dtype == span.dtype and keys[0].is_contiguous() and values[0].is_contiguous():
            # From the file to its place in one system call.
            self._read_into(span, [raw_bytes(head) for half in (keys, values) for head in half])
        else:
            stored_keys, stored_values = self._read(span)
            keys.copy_(stored_keys)
            values.copy_(stored_values)

    def means(self) -> Means:
        """See :class:`ChunkReader`."""
        return Means(*(self._rows(name) for name in SUMMARIES))

    def resume_hidden(self) -> torch.Tensor:
        """See :class:`ChunkReader`."""
        return self._rows("hidden")

    def verify(self) -> None:
        """Compare the metadata and every tensor with their checksums.

        Raises:
            DamagedFileError: one differs.
        """
        self.verify_metadata()
        self._require_readable()
        try:
            checksums = json.loads(self.metadata["checksums"])
        except (KeyError, ValueError) as error:
            raise DamagedFileError(f"its metadata is incomplete ({error})") from error
        differing = [name for name, span in self._tensors.items() if self._checksum(span) != checksums.get(name)]
        if differing or set(self._tensors) != set(checksums):
            raise DamagedFileError(f"checksum differs in {', '.join(sorted(differing)) or 'the list of tensors'}")

    def verify_metadata(self) -> None:
        """Compare the metadata alone with its checksum.

        Raises:
            DamagedFileError: it differs.
        """
        if self.metadata.get("own_checksum") != metadata_checksum(self.metadata):
            raise DamagedFileError("the checksum of its metadata differs")

    def _span(self, name: str) -> TensorSpan:
        try:
            return self._tensors[name]
        except KeyError:
            raise DamagedFileError(f"it has no tensor {name}") from None

    def _rows(self, name: str) -> torch.Tensor:
        """A tensor that is quantised by rows where the KV is."""
        rows = self._read(self._span(name))
        if self.kv_dtype in QUANTIZATIONS:
            return dequantize_rows(rows, self._read(self._span(f"{name}.scales")), self.dtype)
        return rows if self.kv_dtype == dtype_name(self.dtype) else rows.to(self.dtype)

    def _read(self, span: TensorSpan) -> torch.Tensor:
        tensor = torch.empty(span.shape, dtype=span.dtype)
        self._read_into(span, [raw_bytes(tensor)])
        return tensor

    def _read_into(self, span: TensorSpan, buffers: list[Buffer]) -> None:
        try:
            self._source.read_into(span.start, buffers)
        except (DamagedBytesError, OSError) as error:
            raise DamagedFileError(f"unreadable ({error})") from error

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The whole encoded chunk, a part in memory at a time.

        Raises:
            DamagedFileError: it cannot be read.
        """
        return self._pieces(0, self.num_bytes)

    def _checksum(self, span: TensorSpan) -> str:
        return tensor_checksum(span.dtype, span.shape, self._pieces(span.start, span.stop))

    def _pieces(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        try:
            for begin in range(start, stop, _PIECE_BYTES):
                yield self._source.read(begin, min(begin + _PIECE_BYTES, stop))
        except (DamagedBytesError, OSError) as error:
            raise DamagedFileError(f"unreadable ({error})") from error

    def _require_format(self) -> None:
        found = self.metadata.get("format", "")
        if found in _READABLE_VERSIONS:
            return
        if found.isdecimal() and int(found) > int(FORMAT_VERSION):
            raise NewerFormatError(f"its format is {found!r}, this release reads up to {FORMAT_VERSION!r}; update it")
        raise DamagedFileError(f"its format is {found!r}, expected one of {', '.join(_READABLE_VERSIONS)}")

    def _require_readable(self) -> None:
        try:
            _ = self.layout, self.dtype
        except (ValueError, KeyError) as error:
            raise DamagedFileError(f"its metadata is not what a writer writes ({error})") from error

    def _require(self, fingerprint: str | None, key: str | None) -> None:
        if missing := [name for name in ("fingerprint", "text_digest", "layout") if name not in self.metadata]:
            raise DamagedFileError(f"its metadata lacks {', '.join(missing)}")
        if fingerprint is not None and self.fingerprint != fingerprint:
            raise DamagedFileError(f"its fingerprint is {self.fingerprint!r}, expected {fingerprint!r}")
        # A file copied over another chunk's name holds valid tensors of the wrong text.
        if key is not None and self.key != key:
            raise DamagedFileError("it holds another chunk")


class ChunkBytes(EncodedReader):
    """Reader of an encoded chunk in memory, which is kept as long as the reader is.

    Raises:
        DamagedFileError: not a chunk of this format, fingerprint and key.
    """

    def __init__(self, data: bytes, fingerprint: str | None = None, key: str | None = None) -> None:
        super().__init__(MemoryBytes(data), fingerprint, key)


class ChunkFile(EncodedReader):
    """Reader of a chunk file, whose name is the chunk's key.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: not a chunk file of this format, fingerprint and name.
    """

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        try:
            source = FileBytes(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedFileError(f"unreadable ({error})") from error
        self.status = source.status
        """As ``os.fstat`` has it: a file that was replaced has another inode or time."""
        super().__init__(source, fingerprint, path.stem)
