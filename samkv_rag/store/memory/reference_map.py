"""Which source refers to which chunk, in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


class ReferenceMap:
    """What ``disk.index_references`` is for SQLite; its owner's lock guards it."""

    def __init__(self) -> None:
        self._keys: dict[str, dict[str, str]] = {}  # fingerprint -> source -> key
        self._num_sources: Counter[str] = Counter()  # by key, which is one model's alone

    def read(self, fingerprint: str) -> dict[str, str]:
        """Every source of a model and the chunk key that it refers to."""
        return dict(self._keys.get(fingerprint, {}))

    def point(self, fingerprint: str, references: Mapping[str, str]) -> set[str]:
        """Point sources at chunk keys; return the keys that thereby lost their last reference."""
        before = self._take(fingerprint, references)
        self._keys.setdefault(fingerprint, {}).update(references)
        self._num_sources.update(references.values())
        return self._unreferred(before)

    def drop(self, fingerprint: str, sources: Iterable[str]) -> set[str]:
        """Forget sources; return the keys that thereby lost their last reference."""
        return self._unreferred(self._take(fingerprint, sources))

    def drop_keys(self, keys: Iterable[str]) -> None:
        """Forget every source that refers to one of ``keys``."""
        gone = {key for key in keys if self._num_sources.pop(key, 0)}
        if gone:
            for fingerprint, known in self._keys.items():
                self._keys[fingerprint] = {source: key for source, key in known.items() if key not in gone}

    def _take(self, fingerprint: str, sources: Iterable[str]) -> set[str]:
        known = self._keys.get(fingerprint, {})
        taken = [known.pop(source) for source in set(sources) if source in known]
        self._num_sources.subtract(taken)
        return set(taken)

    def _unreferred(self, keys: Iterable[str]) -> set[str]:
        gone = {key for key in keys if self._num_sources[key] <= 0}
        for key in gone:
            del self._num_sources[key]
        return gone
