"""Deleting what a disk store need not keep: too old, too much, referred to by nothing any more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import inf

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.disk.store import DiskStore
from samkv_rag.store.management.inventory import EVERYTHING, Amount, Scope, list_chunks
from samkv_rag.store.shared.options import require_age, require_budget


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
        ConfigurationError: neither scope nor criterion is given, which would empty the store; or one is out of range.
    """

    scope: Scope = EVERYTHING
    older_than_s: float | None = None
    """Not used for longer than this."""
    max_bytes: int | None = None
    """The least valuable go until the scope takes no more: not used for long, cheap to compute again."""
    sources: SourceRule | None = None
    """Those go that lose their last reference by it."""

    def __post_init__(self) -> None:
        if self.older_than_s is not None:
            require_age("older_than_s", self.older_than_s)
        if self.max_bytes != 0 or isinstance(self.max_bytes, bool):
            require_budget("max_bytes", self.max_bytes)
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
