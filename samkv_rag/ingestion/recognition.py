"""Finds known chunks anywhere in a prompt, byte for byte.

Markers are not needed and cannot be forged: a chunk's cache is used only if the prompt has its exact text, checked by
its hash.

The search compares a text's first characters, then its length and last characters, and confirms a match by SHA-256.
Its cost is bounded by the length of the prompt, whatever texts are known.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from samkv_rag.store.catalog import KnownText
from samkv_rag.store.codec import PREFIX_CHARS

T = TypeVar("T")
_MAX_READ = 256
"""Characters that may be read to find texts of one prefix, per character of the prompt. The n-th prefix in a prompt
gets an n-th of it, so no text uses up the share of others, and the sum is bounded too."""
_DIGEST_CHARS = 128
"""Fixed cost of one SHA-256, in characters."""


@dataclass(frozen=True)
class Match:
    """A known chunk's text at ``prompt[start:stop]``, in characters."""

    start: int
    stop: int
    text_digest: str


@dataclass(frozen=True)
class TextSpan:
    """A piece of the prompt: a chunk if ``text_digest`` is set, else text between chunks."""

    start_char: int
    text: str
    text_digest: str | None
    is_label: bool = False
    """Text that belongs to the chunk after it."""


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text, hex; lone surrogates are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def describe(text: str, num_tokens: int = 0) -> KnownText:
    """Return the entry of ``text`` for :class:`ChunkIndex`."""
    return KnownText(text_digest(text), len(text), text[:PREFIX_CHARS], text[-PREFIX_CHARS:], num_tokens)


class ChunkIndex:
    """Finds known chunks in prompts. Not thread-safe."""

    def __init__(self) -> None:
        self._texts: dict[str, KnownText] = {}
        self._lengths: dict[str, Counter[int]] = {}
        """Maps a prefix to the lengths of its texts."""
        self._suffixes: Counter[str] = Counter()

    def get(self, digest: str) -> KnownText | None:
        return self._texts.get(digest)

    def has(self, text: KnownText) -> bool:
        """Whether ``text`` is known by the same properties, except the number of tokens."""
        known = self._texts.get(text.digest)
        return known is not None and known._replace(num_tokens=text.num_tokens) == text

    def add(self, known: Iterable[KnownText]) -> None:
        """Add texts, replacing their old entries."""
        for text in known:
            if text.num_chars >= PREFIX_CHARS == len(text.suffix):
                self.remove([text.digest])
                self._texts[text.digest] = text
                self._lengths.setdefault(text.prefix, Counter())[text.num_chars] += 1
                self._suffixes[text.suffix] += 1

    def remove(self, digests: Iterable[str]) -> None:
        for digest in digests:
            if text := self._texts.pop(digest, None):
                lengths = self._lengths[text.prefix]
                _take_one(lengths, text.num_chars)
                if not lengths:
                    del self._lengths[text.prefix]
                _take_one(self._suffixes, text.suffix)

    def find(self, prompt: str) -> list[Match]:
        """Return the known chunks in ``prompt``, left to right; where texts share a start, the longest."""
        starts = [start for start in range(len(prompt)) if prompt[start : start + PREFIX_CHARS] in self._lengths]
        matches, position = [], 0
        left: dict[str, int] = {}
        for start in starts:
            if start >= position and (match := self._longest(prompt, start, left)):
                matches.append(match)
                position = match.stop
        return matches

    def _longest(self, prompt: str, start: int, left: dict[str, int]) -> Match | None:
        """Return the longest known text at ``start``; None if there is none, or nothing is ``left`` for its prefix."""
        prefix, room = prompt[start : start + PREFIX_CHARS], len(prompt) - start
        lengths = self._lengths[prefix]
        tried = lengths if len(lengths) < room else range(PREFIX_CHARS, room + 1)
        left.setdefault(prefix, _MAX_READ * len(prompt) // (len(left) + 1))
        left[prefix] -= PREFIX_CHARS * len(tried)
        if left[prefix] < 0:
            return None
        stops = (start + num_chars for num_chars in tried)
        for stop in sorted((s for s in stops if prompt[s - PREFIX_CHARS : s] in self._suffixes), reverse=True):
            left[prefix] -= stop - start + _DIGEST_CHARS
            if left[prefix] < 0:
                return None
            if (digest := text_digest(prompt[start:stop])) in self._texts:
                return Match(start, stop, digest)
        return None


def _take_one(counts: Counter[T], value: T) -> None:
    counts[value] -= 1
    if not counts[value]:
        del counts[value]


def split_prompt(prompt: str, matches: Sequence[Match]) -> list[TextSpan]:
    """Cut ``prompt`` into chunks and the text between them, in order and complete."""
    spans, position = [], 0
    for match in matches:
        spans.append(TextSpan(position, prompt[position : match.start], None))
        spans.append(TextSpan(match.start, prompt[match.start : match.stop], match.text_digest))
        position = match.stop
    spans.append(TextSpan(position, prompt[position:], None))
    return [span for span in spans if span.text]
