"""What is done to a disk store besides storing and reading: looked at, checked, pruned, its index made again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from os import PathLike
from pathlib import Path

from samkv_rag.exceptions import ConfigurationError, StoreFormatError
from samkv_rag.store import index_table
from samkv_rag.store.base import Origin
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.index import INDEX_NAME
from samkv_rag.store.index_table import StoredChunk


def open_existing(folder: str | PathLike[str]) -> DiskStore:
    """Open a store that is there already.

    Raises:
        StoreFormatError: the folder holds none.
    """
    if not (Path(folder) / "chunks").is_dir() and not (Path(folder) / INDEX_NAME).is_file():
        raise StoreFormatError(f"{folder} holds no store; give the folder that chunks were ingested into")
    return DiskStore(folder)


# -- looking -----------------------------------------------------------------------------------------


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
    """

    namespace: str | None = None
    model: str | None = None

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


# -- pruning -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceRule:
    """Of the sources whose names begin with ``prefix``, those not in ``keep`` are forgotten."""

    prefix: str
    keep: frozenset[str]

    def releases(self, source: str) -> bool:
        """Whether the source is one to forget."""
        return source.startswith(self.prefix) and source not in self.keep


@dataclass(frozen=True)
class PruneRule:
    """Which chunks go: those of the scope that a criterion applies to; where there is none, all of the scope.

    Raises:
        ConfigurationError: neither scope nor criterion is given, which would empty the store.
    """

    scope: Scope = EVERYTHING
    older_than_s: float | None = None
    """Not used for longer than this."""
    max_bytes: int | None = None
    """The least valuable go until the scope takes no more: not used for long, cheap to compute again."""
    sources: SourceRule | None = None
    """Those go that lose their last reference by it."""

    def __post_init__(self) -> None:
        if self.scope == EVERYTHING and not self.has_criterion:
            raise ConfigurationError(
                "nothing says what to prune; give an age, a size, sources to keep, a namespace or a model"
            )

    @property
    def has_criterion(self) -> bool:
        """Whether anything besides the scope chooses."""
        return self.older_than_s is not None or self.max_bytes is not None or self.sources is not None


def prune(store: DiskStore, rule: PruneRule, dry_run: bool = False) -> Amount:
    """Delete what the rule names and return how much that was; a dry run deletes nothing."""
    chunks = list_chunks(store, rule.scope)
    released = _released(store, chunks, rule.sources) if rule.sources is not None else {}
    unreferred = _unreferred(store, released)
    chosen = _chosen(chunks, rule, unreferred, now_s=time.time())
    if not dry_run:
        for fingerprint, sources in released.items():
            store.release(fingerprint, sources)
        # The unreferred went just now, save what a new source has referred to since.
        store.evict(chunk.entry.key for chunk in chosen if chunk.entry.key not in unreferred)
    return Amount.of(chosen)


def _released(store: DiskStore, chunks: list[StoredChunk], rule: SourceRule) -> dict[str, set[str]]:
    """By fingerprint, the sources that the rule lets go."""
    return {
        fingerprint: {source for source in store.references(fingerprint) if rule.releases(source)}
        for fingerprint in {chunk.fingerprint for chunk in chunks}
    }


def _unreferred(store: DiskStore, released: dict[str, set[str]]) -> set[str]:
    """Keys that nothing will refer to any more."""
    before: set[str] = set()
    after: set[str] = set()
    for fingerprint, sources in released.items():
        for source, key in store.references(fingerprint).items():
            (before if source in sources else after).add(key)
    return before - after


def _chosen(chunks: list[StoredChunk], rule: PruneRule, unreferred: set[str], now_s: float) -> list[StoredChunk]:
    if not rule.has_criterion:
        return chunks
    oldest_s = -inf if rule.older_than_s is None else now_s - rule.older_than_s
    goes = {chunk.entry.key for chunk in chunks if chunk.last_use_s < oldest_s or chunk.entry.key in unreferred}
    kept = [chunk for chunk in chunks if chunk.entry.key not in goes]
    if rule.max_bytes is not None:
        goes |= {chunk.entry.key for chunk in _least_valuable(kept, rule.max_bytes, now_s)}
    return [chunk for chunk in chunks if chunk.entry.key in goes]


def _least_valuable(chunks: list[StoredChunk], max_bytes: int, now_s: float) -> list[StoredChunk]:
    """Chunks without which the others fit into ``max_bytes``."""
    excess, chosen = sum(chunk.num_bytes for chunk in chunks) - max_bytes, []
    for chunk in sorted(chunks, key=lambda chunk: chunk.value(now_s)):
        if excess <= 0:
            break
        chosen.append(chunk)
        excess -= chunk.num_bytes
    return chosen
