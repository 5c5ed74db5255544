"""Finding stored chunks in a prompt, byte for byte, wherever they stand.

No markers are needed and none can be forged: a chunk's cache is used only where its exact text,
checked by its hash, is in the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PREFIX_CHARS = 16
"""Characters by which a chunk is first noticed; a shorter chunk is not worth a cache."""


@dataclass(frozen=True)
class Match:
    """A known chunk's text at ``prompt[start:stop]``, in characters."""

    start: int
    stop: int
    text_digest: str


@dataclass(frozen=True)
class KnownText:
    """What the index needs of a chunk's text."""

    text_digest: str
    prefix: str
    """Its first ``PREFIX_CHARS`` characters."""
    suffix: str
    """Its last ``PREFIX_CHARS`` characters."""
    num_chars: int


def describe(text: str) -> KnownText:
    """Return what :class:`ChunkIndex` needs of ``text``."""
    return KnownText(text_digest(text), text[:PREFIX_CHARS], text[-PREFIX_CHARS:], len(text))


class ChunkIndex:
    """Answers where known chunks stand in a prompt, in time that does not grow with their number.

    Windows of ``PREFIX_CHARS`` characters are hashed at once and looked up in a bit table; the few
    that pass are compared as text. Where many chunks begin alike (a common page header), a
    candidate of each length must also end right before its full text is hashed.
    """

    _TABLE_BITS = 22

    def __init__(self) -> None:
        # first characters -> length in characters -> last characters -> digests of the texts
        self._texts: dict[str, dict[int, dict[str, set[str]]]] = {}
        self._noticed = np.zeros(1 << self._TABLE_BITS, dtype=np.bool_)

    def add(self, known: Iterable[KnownText]) -> None:
        """Add texts; adding one twice changes nothing."""
        fresh = [text for text in known if len(text.prefix) == PREFIX_CHARS]
        for text in fresh:
            by_length = self._texts.setdefault(text.prefix, {})
            by_length.setdefault(text.num_chars, {}).setdefault(text.suffix, set()).add(text.text_digest)
        joined = "".join(text.prefix for text in fresh)
        self._noticed[self._slots(joined)[::PREFIX_CHARS]] = True

    def find(self, prompt: str) -> list[Match]:
        """Return the known chunks in ``prompt``, left to right, the longest where they overlap."""
        matches = []
        position = 0
        for start in np.flatnonzero(self._noticed[self._slots(prompt)]).tolist():
            if start >= position and (match := self._longest(prompt, start)):
                matches.append(match)
                position = match.stop
        return matches

    def _slots(self, text: str) -> npt.NDArray[np.uint64]:
        """Table slot of every window of ``PREFIX_CHARS`` characters."""
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
        num_windows = max(0, len(codes) - PREFIX_CHARS + 1)
        hashes = np.zeros(num_windows, dtype=np.uint64)
        for i in range(PREFIX_CHARS):  # over the window's width, not over the text
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[i : i + num_windows]
        return hashes >> np.uint64(64 - self._TABLE_BITS)

    def _longest(self, prompt: str, start: int) -> Match | None:
        by_length = self._texts.get(prompt[start : start + PREFIX_CHARS], {})
        candidates = [
            (length, digests)
            for length, by_suffix in by_length.items()
            if (digests := by_suffix.get(prompt[start + length - PREFIX_CHARS : start + length]))
        ]
        for length, digests in sorted(candidates, reverse=True, key=lambda candidate: candidate[0]):
            stop = start + length
            if stop <= len(prompt) and (digest := text_digest(prompt[start:stop])) in digests:
                return Match(start, stop, digest)
        return None


def text_digest(text: str) -> str:
    """SHA-256 of a text, hex; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class TextSpan:
    """A piece of the prompt: a chunk where ``text_digest`` is set, else text between chunks."""

    start_char: int
    text: str
    text_digest: str | None


def split_prompt(prompt: str, matches: list[Match]) -> list[TextSpan]:
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
