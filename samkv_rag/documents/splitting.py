"""Texts to chunks of whole paragraphs, or of whole sentences where paragraphs are long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from samkv_rag.documents.reading import Document

CHUNK_TOKENS = 250
VERSION = 1
"""Of the way in which texts are read and cut; who keeps chunks cuts again when it changes."""
_ON_TOP = 0.2  # of a chunk
_SEPARATORS = ("\n\n", "\n", ". ", "。", " ")

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Chunk:
    """A chunk's text and where it stands."""

    text: str
    page: int | None = None


@dataclass(frozen=True)
class _Piece:
    text: str
    num_tokens: int

    @property
    def is_heading(self) -> bool:
        return self.text.startswith("#") and "\n" not in self.text.strip()


def split_document(document: Document, tokenize: Tokenize) -> list[Chunk]:
    """Cut a document into chunks of about 250 tokens, none of which spans pages."""
    return [Chunk(text, page.number) for page in document.pages for text in split_text(page.text, tokenize)]


def split_text(text: str, tokenize: Tokenize, limit: int = CHUNK_TOKENS) -> list[str]:
    """Cut a text into chunks of at most ``limit`` tokens, or a fifth more.

    Paragraphs stay whole, else lines, else sentences, else words. What may come on top: a heading, so that it
    stands with what it heads, and a short end, which would be no chunk worth retrieving.
    """
    chunks: list[list[_Piece]] = []
    open_chunk: list[_Piece] = []
    for piece in _pieces(text, tokenize, limit):
        if open_chunk and _size(open_chunk) + piece.num_tokens > limit:
            full, open_chunk = _without_last_headings(open_chunk, _ON_TOP * limit)
            chunks.append(full)
        open_chunk.append(piece)
    if chunks and _size(open_chunk) <= _ON_TOP * limit:
        chunks[-1].extend(open_chunk)
    else:
        chunks.append(open_chunk)
    texts = ("".join(piece.text for piece in chunk).strip() for chunk in chunks)
    return [text for text in texts if text]


def _pieces(text: str, tokenize: Tokenize, limit: int) -> Iterator[_Piece]:
    """Paragraphs, or the lines, sentences, words of what is too long; joined they are ``text``."""
    for part in _cut(text, _SEPARATORS, tokenize, limit):
        yield _Piece(part, len(tokenize(part)))


def _cut(text: str, separators: tuple[str, ...], tokenize: Tokenize, limit: int) -> Iterator[str]:
    if not separators:
        middle = len(text) // 2  # a word of more tokens than a chunk may have, or a script without spaces
        parts = [text[:middle], text[middle:]]
    else:
        *ended, last = text.split(separators[0])
        parts = [*(part + separators[0] for part in ended), last]
    for part in filter(None, parts):
        if len(part) > 1 and len(tokenize(part)) > limit:
            yield from _cut(part, separators[1:], tokenize, limit)
        else:
            yield part


def _without_last_headings(chunk: list[_Piece], most_tokens: float) -> tuple[list[_Piece], list[_Piece]]:
    """A chunk, and the headings at its end, which belong to the next; all of it where it is nothing else."""
    end = len(chunk)
    while end and (chunk[end - 1].is_heading or not chunk[end - 1].text.strip()):
        end -= 1
    return (chunk[:end], chunk[end:]) if end and _size(chunk[end:]) <= most_tokens else (chunk, [])


def _size(chunk: list[_Piece]) -> int:
    return sum(piece.num_tokens for piece in chunk)
