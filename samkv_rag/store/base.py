"""The contract of a chunk store. Every implementation runs the same test suite."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Protocol, TypeVar

from samkv_rag.chunk_cache import ChunkCache, ChunkReader, Layout, chunk_key, require_counts
from samkv_rag.config import KVDtype
from samkv_rag.store.format.encoding import encode_chunk

Store = TypeVar("Store", bound="KVStore")

ENTRY_METADATA = "entry"
"""Metadata of a chunk file in which its entry stands, see :meth:`Entry.to_json`."""


@dataclass(frozen=True)
class Origin:
    """Who had a chunk stored, for lists and pruning. Serving goes by the fingerprint alone."""

    namespace: str = ""
    model: str = ""
    """The model's fingerprint, whatever the namespace."""
    model_name: str = ""


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
    origin: Origin = Origin()

    def to_json(self) -> str:
        """One line of ASCII JSON; it stands in every chunk file, so that an index can be rebuilt."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Entry:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: the text is something else.
        """
        try:
            fields = json.loads(text)
            layout, origin = Layout.from_fields(fields.pop("layout")), Origin(**fields.pop("origin"))
            entry = cls(**fields, layout=layout, origin=origin)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a chunk's entry ({error})") from error
        entry._require_types()
        return entry

    def is_of(self, key: str, fingerprint: str) -> bool:
        """Whether it is this key's entry, and the key this model's; another would list what cannot be read."""
        return self.key == key == chunk_key(fingerprint, self.text_digest)

    def _require_types(self) -> None:
        """What others wrote goes into indexes, which one wrong type would make unreadable."""
        texts = (self.key, self.text_digest, self.prefix, self.suffix, *vars(self.origin).values())
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise ValueError(f"not a chunk's entry ({wrong[0]!r} is no text)")
        require_counts((self.num_chars, self.num_tokens))


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk as its file's bytes, on its way from one store to another."""

    entry: Entry
    fingerprint: str
    data: bytes
    """A whole chunk file, see ``format.encoding.encode_chunk``."""

    @classmethod
    def of(cls, entry: Entry, cache: ChunkCache, kv_dtype: KVDtype | None = None) -> EncodedChunk:
        """Encode ``cache``; the file says what the entry says, so that an index can be rebuilt."""
        data = encode_chunk(cache, entry.text_digest, kv_dtype, {ENTRY_METADATA: entry.to_json()})
        return cls(entry, cache.fingerprint, data)


class Prefetch(Protocol):
    """Chunks on their way to a nearer place."""

    def cancel(self) -> None:
        """Start no more of them; what is under way is finished. Any number of times."""


class NoPrefetch:
    """Nothing is on its way, or nothing that could be stopped."""

    def cancel(self) -> None:
        """See :meth:`Prefetch.cancel`."""


class KVStore(ABC):
    """Maps chunk keys to chunk caches, for any number of models (fingerprints) at once."""

    def put(self, entry: Entry, cache: ChunkCache) -> None:
        """Store a chunk, whole or not at all, replacing what stood under its key.

        Raises:
            StoreFullError: no room; what was stored before is intact.
        """
        self.put_encoded(EncodedChunk.of(entry, cache))

    @abstractmethod
    def put_encoded(self, chunk: EncodedChunk) -> None:
        """Like :meth:`put`, of a chunk that is encoded already.

        Raises:
            StoreFullError: no room; what was stored before is intact.
        """

    @abstractmethod
    def open(self, key: str, fingerprint: str) -> ChunkReader | None:
        """Return a reader, or None where the chunk is absent, damaged or another model's.

        A chunk that is there but cannot be trusted is reported by a DamagedChunkWarning.
        """

    @abstractmethod
    def fetch(self, key: str, fingerprint: str) -> EncodedChunk | None:
        """Return a chunk's bytes, verified, for another store; None where :meth:`open` says None."""

    @abstractmethod
    def remove(self, keys: Iterable[str]) -> int:
        """Delete chunks, and the references to them, and return how many chunks there were."""

    @abstractmethod
    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """Return the entries of a model added after ``since`` and the new mark.

        None where entries were removed after ``since``: read again from 0.

        Raises:
            StoreUnreachableError: a remote does not answer, of which it has warned; what was known stands.
        """

    @abstractmethod
    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """Record which chunk key each source (a document's id, say) of a model stands for.

        It replaces what a source referred to before: a chunk that thereby loses its last reference is
        removed. A chunk need not be stored to be referred to. Returns how many chunks were removed.

        Raises:
            StoreError: something else than a key is referred to; the references are as before.
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

    def prefetch(self, keys: Iterable[str], fingerprint: str) -> Prefetch:
        """Start bringing chunks nearer; returns at once and owns no memory beyond the store's budgets."""
        return NoPrefetch()

    def flush(self) -> None:  # noqa: B027 - most stores have written when they return
        """Wait until every chunk put is where it outlives this process.

        Raises:
            StoreError: one could not be written there.
        """

    def close(self) -> None:  # noqa: B027 - memory stores have nothing to do
        """Let go of files; the store is not used afterwards."""

    def __enter__(self: Store) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
