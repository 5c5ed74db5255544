"""A table behind a URL, kept as immutable objects that any number of writers add.

    FOLDER/LEVEL-TIME-RANDOM.txt

Each object, a *segment*, holds some rows; the table is the union of its segments, of two rows of one name
the later one. Later is what its writer put after all that it knew of, whatever the clocks of machines say
(Lamport, doi 10.1145/359545.359563): a row's time is its writer's, made to rise beyond every known one.

Adding rows adds a segment; where 32 of a level have gathered, they are merged into one of the next level.
Nobody ever writes over an object: a new one is put first, then those it replaces are deleted, so that a
reader always finds every row somewhere. Where a merge and a removal meet, a removed row may come back; what
rows mean must bear that.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import xxhash

from samkv_rag.exceptions import DamagedChunkWarning
from samkv_rag.store.remote.files import RemoteFiles

MERGED_SEGMENTS = 32
_SEGMENT_NAME = re.compile(r"\d-\d{20}-[0-9a-f]{16}\.txt")
_MAX_LEVEL = 9
_MAX_LISTINGS = 4


@dataclass(frozen=True, order=True)
class Row:
    """What stands under a name, and when it was put there; of two the larger counts."""

    put_ns: int
    """Nanoseconds since 1970, or more where another machine's clock is ahead."""
    text: str
    """Without line breaks. It decides between rows of one moment, so that all machines agree."""


Segment = dict[str, Row]
"""Rows by name."""
Listener = Callable[[dict[str, str], set[str]], None]
"""Called with the rows that are new or changed, and the names of those that are gone."""


class RemoteLog:
    """What this process knows of one table, brought up to date at most every ``refresh_s`` seconds."""

    def __init__(self, files: RemoteFiles, folder: str, refresh_s: float, listener: Listener) -> None:
        self._files = files
        self._folder = folder
        self._refresh_s = refresh_s
        self._listener = listener
        self._segments: dict[str, Segment] = {}
        self._rows: Segment = {}
        self._newest_ns = 0
        self._listed_s = float("-inf")
        self._lock = threading.RLock()  # guards what is above
        self._listing = threading.Lock()  # one thread lists, and others wait for what it finds
        self._merging = threading.Lock()

    def rows(self) -> dict[str, str]:
        """All rows, as far as known."""
        with self._lock:
            return {name: row.text for name, row in self._rows.items()}

    def refresh(self, force: bool = False) -> None:
        """Take over what others have added and removed.

        Raises:
            StoreError: the remote does not answer.
        """
        with self._listing:
            if not force and time.monotonic() - self._listed_s < self._refresh_s:
                return
            for attempt in range(_MAX_LISTINGS):
                if self._take_over(last=attempt == _MAX_LISTINGS - 1):
                    break

    def add(self, rows: Mapping[str, str]) -> None:
        """Put rows, in place of older ones of their names."""
        put_ns = self._next_ns()
        self._write(0, {name: Row(put_ns, text) for name, text in rows.items()})
        self._merge_full_levels()

    def remove(self, names: set[str]) -> set[str]:
        """Delete rows and return the names of those that were there."""
        self.refresh(force=True)
        touched = {name: segment for name, segment in self._known().items() if names & segment.keys()}
        if not touched:
            return set()
        union = _union(touched.values())
        rest = {name: row for name, row in union.items() if name not in names}
        self._replace(max(map(_level, touched)), rest, list(touched))
        return names & union.keys()

    def _next_ns(self) -> int:
        with self._lock:
            self._newest_ns = max(time.time_ns(), self._newest_ns + 1)
            return self._newest_ns

    def _known(self) -> dict[str, Segment]:
        with self._lock:
            return dict(self._segments)

    def _take_over(self, last: bool) -> bool:
        """List the segments and read the new ones; False where one was merged away between the two."""
        known = self._known()
        names = {name for name in self._files.names(self._folder) if _SEGMENT_NAME.fullmatch(name)}
        new = sorted(names - known.keys())
        contents = self._files.read_all(self._path(name) for name in new)
        if None in contents and not last:
            return False
        found = {name: data for name, data in zip(new, contents, strict=True) if data is not None}
        self._note({name: self._parsed(name, data) for name, data in found.items()}, gone=known.keys() - names)
        self._listed_s = time.monotonic()
        return True

    def _write(self, level: int, segment: Segment) -> None:
        name = f"{level}-{time.time_ns():020d}-{secrets.token_hex(8)}.txt"
        self._files.write(self._path(name), _formatted(segment))
        self._note({name: segment}, gone=())

    def _replace(self, level: int, segment: Segment, names: list[str]) -> None:
        if segment:
            self._write(level, segment)
        self._files.remove(self._path(name) for name in names)
        self._note({}, gone=names)

    def _merge_full_levels(self) -> None:
        """Keep the number of segments small, so that a reader that starts has few to read."""
        if not self._merging.acquire(blocking=False):
            return
        try:
            for level in range(_MAX_LEVEL):
                # One without rows could not be read: it may be whole, or of a newer release, and stays.
                full = {name: part for name, part in self._known().items() if part and _level(name) == level}
                if len(full) >= MERGED_SEGMENTS:
                    self._replace(level + 1, _union(full.values()), list(full))
        finally:
            self._merging.release()

    def _note(self, added: dict[str, Segment], gone: Iterable[str]) -> None:
        """Take segments in and out of what is known; work in proportion to them, not to the table."""
        with self._lock:
            dropped = [self._segments.pop(name) for name in gone if name in self._segments]
            self._segments.update(added)
            for name in set().union(*dropped):
                self._rows.pop(name, None)
                for row in [segment[name] for segment in self._segments.values() if name in segment]:
                    _take_newest(self._rows, name, row)
            for segment in added.values():
                self._newest_ns = max([self._newest_ns, *(row.put_ns for row in segment.values())])
                for name, row in segment.items():
                    _take_newest(self._rows, name, row)
            touched = set().union(*dropped, *added.values())
            changed = {name: self._rows[name].text for name in touched & self._rows.keys()}
            self._listener(changed, touched - self._rows.keys())

    def _parsed(self, name: str, data: bytes) -> Segment:
        """A segment's rows; one that cannot be trusted has none."""
        try:
            head, _, body = data.partition(b"\n")
            if head.decode() != _head(body):
                raise ValueError("its checksum differs")
            return dict(_row(line) for line in body.decode().splitlines())
        except (ValueError, RecursionError) as error:
            where = f"{self._files.name}/{self._path(name)}"
            warnings.warn(f"{where}: {error}; its chunks are computed again", DamagedChunkWarning, stacklevel=2)
            return {}

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _union(segments: Iterable[Segment]) -> Segment:
    union: Segment = {}
    for segment in segments:
        for name, row in segment.items():
            _take_newest(union, name, row)
    return union


def _take_newest(rows: Segment, name: str, row: Row) -> None:
    if name not in rows or rows[name] < row:
        rows[name] = row


def _level(name: str) -> int:
    return int(name[0])


def _head(body: bytes) -> str:
    return f"samkv-log 1 {xxhash.xxh3_64_hexdigest(body)}"


def _formatted(segment: Segment) -> bytes:
    # As JSON a name has neither tabs nor line breaks.
    lines = [f"{row.put_ns}\t{json.dumps(name)}\t{row.text}\n" for name, row in segment.items()]
    body = "".join(lines).encode()
    return f"{_head(body)}\n".encode() + body


def _row(line: str) -> tuple[str, Row]:
    put_ns, name, text = line.split("\t", 2)
    return str(json.loads(name)), Row(int(put_ns), text)
