"""What stores share that hand a chunk over whole: opening one and fetching one are both finding it."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TypeAlias

from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.exceptions import DamagedChunkWarning
from samkv_rag.store.base import EncodedChunk, KVStore
from samkv_rag.store.format.reading import ChunkBytes, DamagedFileError

Found: TypeAlias = tuple[EncodedChunk, ChunkBytes]


class WholeChunkStore(KVStore):
    """A store whose chunks come as all their bytes or not at all."""

    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """See :meth:`KVStore.open`; a chunk that is not handed over is a miss too."""
        found = self._find(key, fingerprint)
        return None if found is None else found[1]

    def fetch(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """See :meth:`KVStore.fetch`."""
        found = self._find(key, fingerprint)
        return None if found is None else found[0]

    @abstractmethod
    def _find(self, key: str, fingerprint: str) -> Found | None:
        """A chunk's bytes, verified, and their reader; None for a miss."""


def verified(key: str, chunk: EncodedChunk, name: str) -> Found | None:
    """Return what was found under ``key`` and its reader; None, with a warning that says ``name``, where it is
    damaged or another chunk."""
    try:
        reader = ChunkBytes(chunk.data, chunk.fingerprint, key)
        reader.verify()
    except DamagedFileError as error:
        warn_damaged(name, error)
        return None
    return chunk, reader


def warn_damaged(name: str, problem: object) -> None:
    """Say which file or object cannot be trusted, and why."""
    warnings.warn(f"{name}: {problem}; computed again", DamagedChunkWarning, stacklevel=3)
