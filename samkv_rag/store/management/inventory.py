"""What a disk store holds, and of whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from samkv_rag.exceptions import ConfigurationError, StoreFormatError
from samkv_rag.store.base import Origin
from samkv_rag.store.disk import index_table
from samkv_rag.store.disk.index import INDEX_NAME
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.disk.store import DiskStore


def open_existing(folder: str | PathLike[str]) -> DiskStore:
    """Open a store that is there already.

    Raises:
        StoreFormatError: the folder holds none.
    """
    if not (Path(folder) / "chunks").is_dir() and not (Path(folder) / INDEX_NAME).is_file():
        raise StoreFormatError(f"{folder} holds no store; give the folder that chunks were ingested into")
    return DiskStore(folder)


@dataclass(frozen=True)
class Amount:
    """How much is stored."""

    num_chunks: int
    num_tokens: int
    num_bytes: int
    """Of the chunk files."""

    @classmethod
    def of(cls, chunks: Collection[StoredChunk]) -> Amount:
        """Sum over ``chunks``."""
        num_tokens, num_bytes = sum(c.entry.num_tokens for c in chunks), sum(c.num_bytes for c in chunks)
        return cls(len(chunks), num_tokens, num_bytes)


@dataclass(frozen=True)
class Statistics:
    """What a store holds, all in all and by who had it stored."""

    total: Amount
    by_origin: dict[Origin, Amount]


@dataclass(frozen=True)
class Scope:
    """Chunks of one namespace, of one model, or both; None: of any.

    ``model`` is the model's fingerprint or its first characters.

    Raises:
        ConfigurationError: the model is empty, which would be every model; or one of the two is no text.
    """

    namespace: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None and not (isinstance(self.model, str) and self.model):
            raise ConfigurationError(f"model is {self.model!r}; it must be a fingerprint or its first characters")
        if self.namespace is not None and not isinstance(self.namespace, str):
            raise ConfigurationError(f"namespace is {self.namespace!r}; it must be a text")

    def holds(self, chunk: StoredChunk) -> bool:
        """Whether the chunk is one of them."""
        origin = chunk.entry.origin
        return self.namespace in (None, origin.namespace) and origin.model.startswith(self.model or "")


EVERYTHING = Scope()


def statistics(store: DiskStore) -> Statistics:
    """Count what is in the index."""
    chunks = list_chunks(store)
    by_origin: dict[Origin, list[StoredChunk]] = defaultdict(list)
    for chunk in chunks:
        by_origin[chunk.entry.origin].append(chunk)
    return Statistics(Amount.of(chunks), {origin: Amount.of(own) for origin, own in by_origin.items()})


def list_chunks(store: DiskStore, scope: Scope = EVERYTHING) -> list[StoredChunk]:
    """The chunks of a scope, oldest first."""
    store.flush_uses()
    return [chunk for chunk in store.index.read(index_table.all_chunks) if scope.holds(chunk)]


def rebuild_index(store: DiskStore) -> int:
    """Make the index again from the files and return how many chunks it holds."""
    return store.index.rebuild()
