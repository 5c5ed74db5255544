"""Finding known chunks in a prompt, byte for byte, wherever they stand.

No markers are needed and none can be forged: a chunk's cache is used only where its exact text,
checked by its hash, is in the prompt.

A text is known by three numbers: its length, a hash of its first characters and a hash of all of them. Both
hashes are polynomials modulo 2⁶⁴, so that the hash of any range of the prompt is a difference of two
running sums. What matches is confirmed by SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samkv_rag.store.catalog import KnownText

PREFIX_CHARS = 16
"""Characters by which a chunk is first noticed; a shorter chunk is not worth a cache."""

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)

_Codes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Match:
    """A known chunk's text at ``prompt[start:stop]``, in characters."""

    start: int
    stop: int
    text_digest: str


@dataclass(frozen=True)
class TextSpan:
    """A piece of the prompt: a chunk where ``text_digest`` is set, else text between chunks."""

    start_char: int
    text: str
    text_digest: str | None


def text_digest(text: str) -> str:
    """SHA-256 of a text, hex; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe(text: str, num_tokens: int = 0) -> KnownText:
    """Return what :class:`ChunkIndex` needs of ``text``."""
    sums, num_chars = _RunningSums(text), len(text)
    prefix = sums.hashes(np.array([0]), min(PREFIX_CHARS, num_chars))
    whole = sums.hashes(np.array([0]), num_chars)
    return KnownText(text_digest(text), num_chars, _signed(prefix[0]), _signed(whole[0]), num_tokens)


class ChunkIndex:
    """Answers where known chunks stand in a prompt. Not thread-safe."""

    def __init__(self) -> None:
        self._texts: dict[str, KnownText] = {}
        self._table: _Table | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, digest: str) -> KnownText | None:
        """What is known of a text."""
        return self._texts.get(digest)

    def add(self, known: Iterable[KnownText]) -> None:
        """Add texts; adding one twice changes nothing."""
        fresh = {text.digest: text for text in known if text.num_chars >= PREFIX_CHARS}
        if fresh.keys() - self._texts.keys():
            self._table = None
        self._texts |= fresh

    def remove(self, digests: Iterable[str]) -> None:
        """Forget texts."""
        for digest in digests:
            if self._texts.pop(digest, None) is not None:
                self._table = None

    def find(self, prompt: str) -> list[Match]:
        """Return the known chunks in ``prompt``, left to right, the longest where they overlap."""
        if len(prompt) < PREFIX_CHARS or not self._texts:
            return []
        self._table = self._table or _Table(self._texts.values())
        matches, position = [], 0
        for start, candidates in self._table.candidates(_RunningSums(prompt)):
            if start < position:
                continue
            for text in candidates:
                stop = start + text.num_chars
                if text_digest(prompt[start:stop]) == text.digest:
                    matches.append(Match(start, stop, text.digest))
                    position = stop
                    break
        return matches


class _Table:
    """Known texts in columns, ordered by the hash of their first characters, then by length."""

    def __init__(self, texts: Iterable[KnownText]) -> None:
        listed = list(texts)
        prefixes = np.array([text.prefix_hash for text in listed], dtype=np.int64).view(np.uint64)
        lengths = np.array([text.num_chars for text in listed], dtype=np.int64)
        hashes = np.array([text.text_hash for text in listed], dtype=np.int64).view(np.uint64)
        order = np.lexsort((lengths, prefixes))
        self._texts = [listed[i] for i in order]
        self._prefixes, self._lengths, self._hashes = prefixes[order], lengths[order], hashes[order]

    def candidates(self, sums: _RunningSums) -> list[tuple[int, list[KnownText]]]:
        """Positions at which texts seem to stand, in order, and those texts, longest first."""
        windows = sums.hashes(np.arange(sums.num_chars - PREFIX_CHARS + 1), PREFIX_CHARS)
        first = np.searchsorted(self._prefixes, windows)
        noticed = np.flatnonzero(self._prefixes[np.minimum(first, len(self._prefixes) - 1)] == windows)
        found: dict[int, list[KnownText]] = {}
        for row in np.unique(first[noticed]).tolist():  # one group of texts that begin alike
            last = int(np.searchsorted(self._prefixes, self._prefixes[row], side="right"))
            self._find_group(sums, noticed[first[noticed] == row], range(row, last), found)
        return sorted(found.items())

    def _find_group(
        self, sums: _RunningSums, starts: npt.NDArray[np.int64], rows: range, found: dict[int, list[KnownText]]
    ) -> None:
        """Look for the texts of ``rows`` at ``starts``: a vector over the more numerous of the two at a time."""
        if len(starts) <= len(rows):
            lengths, hashes = self._lengths[rows.start : rows.stop], self._hashes[rows.start : rows.stop]
            for start in starts.tolist():
                fits = int(np.searchsorted(lengths, sums.num_chars - start, side="right"))
                same = np.flatnonzero(sums.hashes(np.full(fits, start), lengths[:fits]) == hashes[:fits])
                if len(same):
                    found[start] = [self._texts[rows.start + i] for i in same[::-1].tolist()]
            return
        best = np.full(len(starts), -1)
        for row in rows:  # lengths rise, so the last to match is the longest
            fits = int(np.searchsorted(starts, sums.num_chars - self._lengths[row], side="right"))
            same = sums.hashes(starts[:fits], int(self._lengths[row])) == self._hashes[row]
            best[:fits][same] = row
        for i in np.flatnonzero(best >= 0).tolist():
            found[int(starts[i])] = [self._texts[best[i]]]


class _RunningSums:
    """Sums of ``code · base^position`` up to every character of a text, from which any range's hash follows."""

    def __init__(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        self.num_chars = len(codes)
        self._sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum((codes + np.uint64(1)) * _powers(_BASE, len(codes)), out=self._sums[1:])
        self._inverse = _powers(_INVERSE, len(codes) + 1)

    def hashes(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64] | int) -> _Codes:
        """Hashes of the ranges that begin at ``starts``."""
        hashes: _Codes = (self._sums[starts + lengths] - self._sums[starts]) * self._inverse[starts]
        return hashes


def _powers(base: int, number: int) -> _Codes:
    """``base`` to the powers 0, 1, … modulo 2⁶⁴."""
    powers = np.full(number, np.uint64(base))
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _signed(value: np.uint64) -> int:
    """As SQLite's integers are."""
    return int(value.astype(np.int64))


def split_prompt(prompt: str, matches: Sequence[Match]) -> list[TextSpan]:
    """Cut ``prompt`` into chunks and the text between, in order, losing nothing."""
    spans, position = [], 0
    for match in matches:
        if match.start > position:
            spans.append(TextSpan(position, prompt[position : match.start], None))
        spans.append(TextSpan(match.start, prompt[match.start : match.stop], match.text_digest))
        position = match.stop
    if position < len(prompt):
        spans.append(TextSpan(position, prompt[position:], None))
    return spans
