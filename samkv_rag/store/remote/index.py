"""Which chunks a remote store holds, and which sources refer to them, per model.

index/FINGERPRINT/…         a row a chunk: its key; bytes and entry
references/FINGERPRINT/…    a row a source: its name; the chunk's key
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress

from samkv_rag.store.base import Entry
from samkv_rag.store.remote.files import RemoteFiles
from samkv_rag.store.remote.log import Listener, RemoteLog
from samkv_rag.store.shared.hashes import is_hash
from samkv_rag.store.shared.ledger import Ledger


class RemoteIndex:
    """The tables of all models that this process has asked for."""

    def __init__(self, files: RemoteFiles, refresh_s: float) -> None:
        self._files = files
        self._refresh_s = refresh_s
        self._ledger = Ledger()
        self._logs: dict[str, RemoteLog] = {}
        self._lock = threading.Lock()

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`, as far as known."""
        return self._ledger.changes(fingerprint, since)

    def find(self, fingerprint: str, key: str) -> Entry | None:
        """A chunk's entry, as far as known."""
        return self._ledger.get(fingerprint, key)

    def num_bytes(self) -> int:
        """Bytes of all chunks of all models."""
        total = 0
        for fingerprint in self._fingerprints("index"):
            self.refresh(fingerprint)
            rows = self._chunks(fingerprint).rows().values()
            total += sum(_num_bytes(text) for text in rows)
        return total

    def refresh(self, fingerprint: str, force: bool = False) -> None:
        """Take over what others have added and removed.

        Raises:
            StoreError: the remote does not answer.
        """
        self._chunks(fingerprint).refresh(force)

    def add(self, fingerprint: str, entry: Entry, num_bytes: int) -> None:
        """List a chunk whose object is in its place."""
        self._chunks(fingerprint).add({entry.key: f"{num_bytes}\t{entry.to_json()}"})

    def remove(self, keys: set[str], fingerprint: str | None = None) -> set[str]:
        """List these chunks no more, of one model or whosever they are, and return which there were.

        Where a merge at the same moment keeps one listed, it is a miss when it is read, and unlisted then.
        """
        fingerprints = self._fingerprints("index") if fingerprint is None else [fingerprint]
        return set().union(*(self._chunks(one).remove(keys) for one in fingerprints))

    # -- references --------------------------------------------------------------------------------

    def references(self, fingerprint: str) -> dict[str, str]:
        """Every source of a model and the chunk key that it refers to, as it stands now."""
        log = self._sources(fingerprint)
        log.refresh(force=True)
        return log.rows()

    def point(self, fingerprint: str, references: Mapping[str, str]) -> set[str]:
        """Point sources at chunk keys; return the keys that thereby lost their last reference."""
        before = self.references(fingerprint)
        if references:
            self._sources(fingerprint).add(references)
        return self._unreferred(fingerprint, before, references)

    def drop(self, fingerprint: str, sources: Iterable[str]) -> set[str]:
        """Forget sources; return the keys that thereby lost their last reference."""
        gone = set(sources)
        before = self.references(fingerprint)
        self._sources(fingerprint).remove(gone)
        return self._unreferred(fingerprint, before, gone)

    def drop_keys(self, keys: set[str]) -> None:
        """Forget every source that refers to one of ``keys``."""
        for fingerprint in self._fingerprints("references"):
            gone = {source for source, key in self.references(fingerprint).items() if key in keys}
            if gone:
                self._sources(fingerprint).remove(gone)

    def _unreferred(self, fingerprint: str, before: dict[str, str], sources: Iterable[str]) -> set[str]:
        # Read again: another machine may have referred to the same chunk meanwhile.
        return {before[source] for source in sources if source in before} - set(self.references(fingerprint).values())

    # -- tables ------------------------------------------------------------------------------------

    def _fingerprints(self, table: str) -> list[str]:
        return [name for name in self._files.names(table) if is_hash(name)]

    def _chunks(self, fingerprint: str) -> RemoteLog:
        def take_over(changed: dict[str, str], gone: set[str]) -> None:
            self._ledger.remove(gone)
            self._ledger.add(fingerprint, _entries(fingerprint, changed))

        return self._log(f"index/{fingerprint}", take_over)

    def _sources(self, fingerprint: str) -> RemoteLog:
        return self._log(f"references/{fingerprint}", lambda changed, gone: None)

    def _log(self, folder: str, listener: Listener) -> RemoteLog:
        with self._lock:
            if folder not in self._logs:
                self._logs[folder] = RemoteLog(self._files, folder, self._refresh_s, listener)
            return self._logs[folder]


def _entries(fingerprint: str, rows: dict[str, str]) -> Iterable[Entry]:
    for key, text in rows.items():
        with suppress(ValueError):  # of a release that says more, or less, of a chunk
            entry = Entry.from_json(text.partition("\t")[2])
            # Another model's rows under this model's name would list keys that are not its own.
            if entry.is_of(key, fingerprint):
                yield entry


def _num_bytes(text: str) -> int:
    number = text.partition("\t")[0]
    return int(number) if number.isdecimal() and len(number) < 20 else 0
