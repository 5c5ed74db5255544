"""Finding known chunks in a prompt, byte for byte, wherever they stand.

No markers are needed and none can be forged: a chunk's cache is used only where its exact text,
checked by its hash, is in the prompt.

A text is known by three numbers: its length, a hash of its first characters and a hash of all of them. Both
hashes are polynomials modulo the prime 2⁶¹ − 1, so that the hash of any range of the prompt is a difference of
two running sums. What matches is confirmed by SHA-256.

Who wants two texts of one hash can construct them. So a hash decides nothing: where one text is not confirmed the
shorter ones are tried, and what looking through one prompt may cost is bounded by its length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from samkv_rag.store.catalog import KnownText

PREFIX_CHARS = 16
"""Characters by which a chunk is first noticed; a shorter chunk is not worth a cache."""

_PRIME = (1 << 61) - 1
_BASE = 0x1E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, _PRIME)
_MAX_COMPARED = 16
"""Ranges of a prompt whose hashes are compared, for each of its characters. Ordinary prompts need one or two."""
_MAX_DIGESTED = 64
"""Characters whose SHA-256 is computed, for each character of a prompt. Ordinary prompts need one."""
_LENGTH_BITS = 32
_MAX_LENGTH = (1 << _LENGTH_BITS) - 1
"""Longer than any prompt."""
_BLOCK = 1 << 16
"""Comparisons made at once, as many as fit into a processor's cache."""
_DIGEST_CHARS = 128
"""What finishing one SHA-256 costs, in characters."""

_Codes = npt.NDArray[np.uint64]
_Ints = npt.NDArray[np.int64]


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
    is_label: bool = False
    """Text that belongs to the chunk behind it."""


def text_digest(text: str) -> str:
    """SHA-256 of a text, hex; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe(text: str, num_tokens: int = 0) -> KnownText:
    """Return what :class:`ChunkIndex` needs of ``text``."""
    sums, num_chars = _RunningSums(text), len(text)
    prefix = sums.hashes(np.array([0]), min(PREFIX_CHARS, num_chars))
    whole = sums.hashes(np.array([0]), num_chars)
    return KnownText(text_digest(text), num_chars, int(prefix[0]), int(whole[0]), num_tokens)


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

    def has(self, text: KnownText) -> bool:
        """Whether ``text`` is known and will be found, however many tokens it has."""
        known = self._texts.get(text.digest)
        return known is not None and known._replace(num_tokens=text.num_tokens) == text

    def add(self, known: Iterable[KnownText]) -> None:
        """Add texts, in place of what was known of them; adding one twice changes nothing."""
        fresh = {text.digest: text for text in known if text.num_chars >= PREFIX_CHARS}
        if not all(map(self.has, fresh.values())):
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
        matches, position, left = [], 0, _MAX_DIGESTED * len(prompt)
        for start, lengths in self._table.candidates(_RunningSums(prompt)).items():
            if start < position:
                continue
            left -= lengths[-1] + _DIGEST_CHARS * len(lengths)
            if left < 0:
                break
            text = prompt[start : start + lengths[-1]]
            confirmed = [pair for pair in zip(lengths, _digests(text, lengths), strict=True) if pair[1] in self._texts]
            if confirmed:
                length, digest = confirmed[-1]
                position = start + length
                matches.append(Match(start, position, digest))
        return matches


def _digests(text: str, lengths: Sequence[int]) -> Iterator[str]:
    """The :func:`text_digest` of the first characters of ``text``, for rising numbers of them, in one go."""
    hasher, position = hashlib.sha256(), 0
    for length in lengths:
        hasher.update(text[position:length].encode("utf-8", "surrogatepass"))
        position = length
        yield hasher.hexdigest()


class _Table:
    """The lengths of known texts by the hash of their first characters, and the hashes of the texts, all sorted."""

    def __init__(self, texts: Iterable[KnownText]) -> None:
        listed = list(texts)
        prefixes = np.array([text.prefix_hash for text in listed], dtype=np.int64).view(np.uint64)
        lengths = np.array([min(text.num_chars, _MAX_LENGTH) for text in listed], dtype=np.int64)
        self._hashes = np.unique(np.array([text.text_hash for text in listed], dtype=np.int64).view(np.uint64))
        self._prefixes, groups = np.unique(prefixes, return_inverse=True)
        # Lengths by group of texts that begin alike: the group's number stands in the upper bits.
        self._lengths = np.unique(groups.astype(np.int64) << _LENGTH_BITS | lengths)

    def candidates(self, sums: _RunningSums) -> dict[int, list[int]]:
        """Positions at which texts seem to stand, in order, and the lengths of these texts, rising.

        Where that would take too many comparisons, those are left out that repeat themselves most: of texts of
        many lengths with one beginning, which stands at many positions.
        """
        windows = sums.hashes(np.arange(sums.num_chars - PREFIX_CHARS + 1), PREFIX_CHARS)
        groups, is_known = _look_up(self._prefixes, windows)
        starts = np.flatnonzero(is_known)
        groups = groups[starts]
        first = np.searchsorted(self._lengths, groups << _LENGTH_BITS)
        behind = np.searchsorted(self._lengths, (groups << _LENGTH_BITS) + sums.num_chars - starts, side="right")
        counts = behind - first
        order = np.argsort(np.bincount(groups, weights=counts)[groups], kind="stable")
        order = order[np.cumsum(counts[order]) <= _MAX_COMPARED * sums.num_chars]
        found_starts, found_lengths = self._compared(sums, starts[order], first[order], counts[order])
        found: dict[int, list[int]] = {}
        in_order = np.lexsort((found_lengths, found_starts))
        for start, length in zip(found_starts[in_order].tolist(), found_lengths[in_order].tolist(), strict=True):
            found.setdefault(start, []).append(length)
        return found

    def _compared(self, sums: _RunningSums, starts: _Ints, first: _Ints, counts: _Ints) -> tuple[_Ints, _Ints]:
        """Starts and lengths of the ranges that have the hash of a text, of ``counts`` lengths for every start."""
        behind = np.cumsum(counts)
        found = [(starts[:0], starts[:0])]
        for low in range(0, int(counts.sum()), _BLOCK):
            pairs = np.arange(low, min(low + _BLOCK, int(behind[-1])))
            at = np.searchsorted(behind, pairs, side="right")
            lengths = self._lengths[first[at] + pairs - behind[at] + counts[at]] & _MAX_LENGTH
            _, same = _look_up(self._hashes, sums.hashes(starts[at], lengths))
            found.append((starts[at][same], lengths[same]))
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


class _RunningSums:
    """Sums of ``code · base^position`` up to every character of a text, from which any range's hash follows."""

    def __init__(self, text: str) -> None:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        self.num_chars = len(codes)
        terms = _product(codes + np.uint64(1), _powers(_BASE, len(codes)))
        self._sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        # The upper and lower bits are summed apart: neither overflows.
        upper, lower = np.cumsum(terms >> np.uint64(32)), np.cumsum(terms & np.uint64(0xFFFFFFFF))
        self._sums[1:] = _remainder(_product(_remainder(upper), np.uint64(1 << 32)) + _remainder(lower))
        self._inverse = _powers(_INVERSE, len(codes) + 1)

    def hashes(self, starts: _Ints, lengths: _Ints | int) -> _Codes:
        """Hashes of the ranges that begin at ``starts``."""
        differences = _remainder(self._sums[starts + lengths] + np.uint64(_PRIME) - self._sums[starts])
        return _product(differences, self._inverse[starts])


def _look_up(table: _Codes, values: _Codes) -> tuple[_Ints, npt.NDArray[np.bool_]]:
    """Where each value stands in the sorted ``table``, and whether it does."""
    at = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return at, table[at] == values


def _powers(base: int, number: int) -> _Codes:
    """``base`` to the powers 0, 1, …"""
    powers = _first_powers(base)
    while len(powers) < number:
        powers = _doubled(powers, base)
    return powers[:number]


@cache
def _first_powers(base: int) -> _Codes:
    """As many as most texts need."""
    powers = np.ones(1, dtype=np.uint64)
    while len(powers) < _BLOCK:
        powers = _doubled(powers, base)
    return powers


def _doubled(powers: _Codes, base: int) -> _Codes:
    return np.concatenate((powers, _product(powers, np.uint64(pow(base, len(powers), _PRIME)))))


def _product(a: _Codes, b: _Codes | np.uint64) -> _Codes:
    """``a · b`` modulo 2⁶¹ − 1, of factors below it: in halves of 31 bits, as numpy has no integers of 128."""
    half, low, middle_low = np.uint64(31), np.uint64((1 << 31) - 1), np.uint64((1 << 30) - 1)
    a_high, a_low, b_high, b_low = a >> half, a & low, b >> half, b & low
    middle = a_high * b_low + a_low * b_high
    # 2⁶² is 2 and 2⁶¹ is 1.
    high = (a_high * b_high << np.uint64(1)) + (middle >> np.uint64(30))
    return _remainder(high + ((middle & middle_low) << half) + a_low * b_low)


def _remainder(values: _Codes) -> _Codes:
    """Modulo 2⁶¹ − 1."""
    folded = (values & np.uint64(_PRIME)) + (values >> np.uint64(61))
    return np.minimum(folded, folded - np.uint64(_PRIME))  # the difference wraps around where there is none


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
