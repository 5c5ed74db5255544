"""A chunk cache as one safetensors file, readable layer by layer.

Tensors: ``token_ids`` [tokens]; ``kv.<layer>`` [2, kv_heads, tokens, head_dim], keys then values;
``block_mean_keys``, ``anchor_mean_key``, ``local_mean_query``; ``hidden`` where there is one.
Metadata: format version, fingerprint, text digest, layout, an XXH3-64 checksum of every tensor's
dtype, shape and bytes, and one of the metadata itself.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from samkv_rag.chunk_cache import ChunkCache, Layout, Means, chunk_key
from samkv_rag.exceptions import StoreError

FORMAT_VERSION = "1"


class DamagedFileError(StoreError):
    """The file is not what it should be; the text says how."""


def write_chunk_file(path: Path, cache: ChunkCache, digest: str) -> int:
    """Write ``cache`` to ``path`` atomically and return the file's size in bytes."""
    tensors = _to_tensors(cache)
    metadata = {
        "format": FORMAT_VERSION,
        "fingerprint": cache.fingerprint,
        "text_digest": digest,
        "layout": cache.layout.to_json(),
        "checksums": json.dumps({name: _checksum(tensor) for name, tensor in tensors.items()}),
    }
    metadata["own_checksum"] = _metadata_checksum(metadata)
    # The temporary file lies in the same folder: a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    os.close(handle)
    try:
        _save(tensors, temporary, metadata)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path.stat().st_size


class ChunkFile:
    """Reader of a chunk file; every tensor it returns is an owned copy.

    Raises:
        FileNotFoundError: no such file.
        DamagedFileError: not a chunk file of this format and fingerprint.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            # pread instead of mmap: tensors own their bytes, and a replaced file never shows through.
            self._file: Any = _open_safetensors(path)
        except (SafetensorError, OSError) as error:
            raise DamagedFileError(f"unreadable ({error})") from error
        self._metadata: dict[str, str] = self._file.metadata() or {}
        self._expect("format", FORMAT_VERSION)
        self._expect("fingerprint", fingerprint)
        self._expect_name(path)

    @cached_property
    def layout(self) -> Layout:
        """See :class:`ChunkReader`."""
        return Layout.from_json(self._metadata["layout"])

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """See :class:`ChunkReader`."""
        return self._read("token_ids")

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`ChunkReader`."""
        keys, values = self._read(f"kv.{layer}")
        return keys, values

    def means(self) -> Means:
        """See :class:`ChunkReader`."""
        return Means(*(self._read(name) for name in Means.__annotations__))

    def resume_hidden(self) -> torch.Tensor:
        """See :class:`ChunkReader`."""
        return self._read("hidden")

    def verify(self) -> None:
        """Compare the metadata and every tensor with their checksums.

        Raises:
            DamagedFileError: one differs.
        """
        if self._metadata.get("own_checksum") != _metadata_checksum(self._metadata):
            raise DamagedFileError("the checksum of its metadata differs")
        try:
            checksums = json.loads(self._metadata["checksums"])
            names = set(self._file.keys())
            differing = [name for name in names if _checksum(self._read(name)) != checksums.get(name)]
        except (KeyError, ValueError) as error:
            raise DamagedFileError(f"its metadata is incomplete ({error})") from error
        if differing or names != set(checksums):
            raise DamagedFileError(f"checksum differs in {', '.join(sorted(differing)) or 'the list of tensors'}")

    def _read(self, name: str) -> torch.Tensor:
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise DamagedFileError(f"tensor {name} is unreadable ({error})") from error
        return tensor

    def _expect(self, field: str, value: str) -> None:
        found = self._metadata.get(field)
        if found != value:
            raise DamagedFileError(f"its {field} is {found!r}, expected {value!r}")

    def _expect_name(self, path: Path) -> None:
        # A file copied over another chunk's name holds valid tensors of the wrong text.
        key = chunk_key(self._metadata["fingerprint"], self._metadata.get("text_digest", ""))
        if path.stem != key:
            raise DamagedFileError("it holds another chunk")


def _to_tensors(cache: ChunkCache) -> dict[str, torch.Tensor]:
    layers = zip(cache.keys, cache.values, strict=True)
    tensors = {f"kv.{layer}": torch.stack(pair) for layer, pair in enumerate(layers)}
    tensors["token_ids"] = cache.token_ids
    tensors |= {name: getattr(cache.summary, name) for name in Means.__annotations__}
    if cache.hidden is not None:
        tensors["hidden"] = cache.hidden
    return {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}


def _open_safetensors(path: Path) -> Any:
    file: Any = safe_open(path, framework="pt", backend="pread")
    return file.__enter__()  # closed with the reader: it lives as long as the request


def _metadata_checksum(metadata: dict[str, str]) -> str:
    covered = {name: value for name, value in metadata.items() if name != "own_checksum"}
    return xxhash.xxh3_64_hexdigest(json.dumps(covered, sort_keys=True).encode())


def _checksum(tensor: torch.Tensor) -> str:
    """Checksum of a tensor's bytes and of how they are read."""
    hasher = xxhash.xxh3_64(f"{tensor.dtype}{list(tensor.shape)}".encode())
    hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _save(tensors: dict[str, torch.Tensor], path: str, metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # safetensors wraps the operating system's error into text; a full disk must be told apart.
        if "No space left" in str(error) or "os error 28" in str(error):
            raise OSError(28, "No space left on device") from error
        raise
