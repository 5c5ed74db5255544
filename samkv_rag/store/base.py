"""The contract of a chunk store. Every implementation runs the same test suite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType

from samkv_rag.chunk_cache import ChunkCache, ChunkReader, Layout


@dataclass(frozen=True)
class Entry:
    """One line of a store's index: what recognising a chunk in a prompt needs, without its KV."""

    key: str
    text_digest: str
    prefix: str
    """The text's first characters, see ``prompt.PREFIX_CHARS``."""
    suffix: str
    """The text's last characters."""
    num_chars: int
    num_tokens: int
    layout: Layout


class KVStore(ABC):
    """Maps chunk keys to chunk caches, for any number of models (fingerprints) at once."""

    @abstractmethod
    def put(self, entry: Entry, cache: ChunkCache) -> None:
        """Store a chunk, whole or not at all, replacing what stood under its key.

        Raises:
            StoreFullError: no room; what was stored before is intact.
        """

    @abstractmethod
    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """Return a reader, or None where the chunk is absent, damaged or another model's.

        A chunk that is there but cannot be trusted is reported by a DamagedChunkWarning.
        """

    @abstractmethod
    def remove(self, keys: Iterable[str]) -> int:
        """Delete chunks, and the references to them, and return how many chunks there were."""

    @abstractmethod
    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """Return the entries of a model added after ``since`` and the new mark.

        None where entries were removed after ``since``: read again from 0.
        """

    @abstractmethod
    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """Record which chunk key each source (a document's id, say) of a model stands for.

        It replaces what a source referred to before: a chunk that thereby loses its last reference is
        removed. A chunk need not be stored to be referred to. Returns how many chunks were removed.

        Raises:
            StoreFullError: no room; the references are as before.
        """

    @abstractmethod
    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """Forget sources, and remove the chunks that lose their last reference; return how many.

        A chunk that no source ever referred to stays.
        """

    @abstractmethod
    def references(self, fingerprint: str) -> dict[str, str]:
        """Return every source of a model and the chunk key that it refers to."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that the stored chunks take."""

    def prefetch(self, keys: Iterable[str]) -> None:  # noqa: B027 - memory stores have nothing to do
        """Start bringing chunks nearer; returns at once and owns no memory."""

    def close(self) -> None:  # noqa: B027 - memory stores have nothing to do
        """Let go of files; the store is not used afterwards."""

    def __enter__(self) -> KVStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
