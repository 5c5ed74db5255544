"""A file's text, page by page; what is wrong with it in words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samkv_rag.documents.files import find_files
from samkv_rag.exceptions import ChunkError, EmptyChunkError

MAX_TEXT_BYTES = 16_000_000
"""Of text, in a file; some thousands of printed pages."""
MAX_PDF_BYTES = 512_000_000


@dataclass(frozen=True)
class Page:
    """Text of a page; a file that has none is one page without a number."""

    text: str
    number: int | None = None


@dataclass(frozen=True)
class Document:
    """The pages of a file that hold text."""

    file: Path
    pages: tuple[Page, ...]


@dataclass(frozen=True)
class Reading:
    """What could be read, and of each file that could not, why and what to do."""

    documents: tuple[Document, ...]
    problems: tuple[str, ...]


def read_documents(paths: Iterable[Path]) -> Reading:
    """Read files, and those of folders; one that cannot be read is a problem of the reading, not an error.

    Raises:
        ChunkError: a path does not exist, a folder holds nothing to read, or not one file could be read.
    """
    found = find_files(paths)
    documents: list[Document] = []
    errors: list[ChunkError] = []
    for file in found.files:
        try:
            documents.append(parse(file, load(file)))
        except ChunkError as error:
            errors.append(error)
    require_some(len(documents), errors)
    return Reading(tuple(documents), (*found.problems, *map(str, errors)))


def require_some(num_read: int, errors: Sequence[ChunkError]) -> None:
    """Raise, where nothing was read, what was wrong."""
    if errors and not num_read:
        if len(errors) == 1:
            raise errors[0]
        raise ChunkError(f"none of {len(errors)} files can be read; the first: {errors[0]}")


def load(file: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        ChunkError: it cannot be read, or is too large.
    """
    limit = MAX_PDF_BYTES if file.suffix.lower() == ".pdf" else MAX_TEXT_BYTES
    try:
        if (num_bytes := os.stat(file).st_size) > limit:
            raise ChunkError(f"{file} has {num_bytes:,} bytes, the limit is {limit:,}; split it, or leave it out")
        return file.read_bytes()
    except OSError as error:
        raise ChunkError(f"{file} cannot be read: {error.strerror}") from error


def parse(file: Path, data: bytes) -> Document:
    """Return the text in a file's bytes, which are a PDF or UTF-8.

    Raises:
        ChunkError, EmptyChunkError: they are something else, or hold no text.
    """
    if file.suffix.lower() == ".pdf" or data.startswith(b"%PDF-"):
        from samkv_rag.documents.pdf import read_pages

        pages = [Page(text, number) for number, text in enumerate(read_pages(file, data), start=1)]
    else:
        pages = [Page(_decoded(file, data))]
    return _with_text(Document(file, tuple(page for page in pages if page.text.strip())))


def _with_text(document: Document) -> Document:
    file, num_chars = document.file, sum(len(page.text) for page in document.pages)
    if num_chars == 0:
        raise EmptyChunkError(f"{file} is empty; leave it out")
    if num_chars > MAX_TEXT_BYTES:
        raise ChunkError(f"{file} has {num_chars:,} characters, the limit is {MAX_TEXT_BYTES:,}; split it")
    return document


def _decoded(file: Path, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ChunkError(f"{file} is not UTF-8 text but UTF-16; save it as UTF-8")
    if b"\0" in data:
        raise ChunkError(f"{file} is a binary file; give text, Markdown or PDF files")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ChunkError(f"{file} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error
