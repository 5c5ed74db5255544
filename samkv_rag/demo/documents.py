"""`samkv ingest`: text files, and how they are cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from samkv_rag.exceptions import ChunkError, EmptyChunkError

CHUNK_TOKENS = 250
SUFFIXES = (".md", ".markdown", ".txt", ".rst")

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True)
class Chunked:
    """The chunks of some texts, and what cut them."""

    chunks: list[str]
    splitter: str


def read_texts(paths: Iterable[Path]) -> list[str]:
    """The texts of files, and of the text files in folders, all checked before anything is computed.

    Raises:
        ChunkError: a path does not exist, is not text, or a folder holds no text files.
        EmptyChunkError: a file is empty.
    """
    return [_read_text(file) for path in paths for file in _files(path)]


def split_texts(texts: Iterable[str], tokenize: Tokenize) -> Chunked:
    """Cut texts into chunks of about 250 tokens, by LlamaIndex's SentenceSplitter where it is installed."""
    try:
        from llama_index.core.node_parser import SentenceSplitter
    except ModuleNotFoundError:
        return Chunked([c for text in texts for c in pack_paragraphs(text, tokenize)], "paragraphs")
    splitter = SentenceSplitter(chunk_size=CHUNK_TOKENS, chunk_overlap=0, tokenizer=tokenize)
    return Chunked([c for text in texts for c in splitter.split_text(text)], "SentenceSplitter")


def pack_paragraphs(text: str, tokenize: Tokenize, limit: int = CHUNK_TOKENS) -> Iterator[str]:
    """Yield chunks of whole paragraphs, of at most ``limit`` tokens where paragraphs and lines allow it."""
    packed, num_tokens = "", 0
    for piece in _pieces(text, tokenize, limit):
        size = len(tokenize(piece))
        if packed.strip() and num_tokens + size > limit:
            yield packed.strip()
            packed, num_tokens = "", 0
        packed, num_tokens = packed + piece, num_tokens + size
    if packed.strip():
        yield packed.strip()


def _pieces(text: str, tokenize: Tokenize, limit: int) -> Iterator[str]:
    """Paragraphs, or the lines, then the sentences, of what is too long; joined they are ``text``."""
    yield from _cut(text, ("\n\n", "\n", ". ", " "), tokenize, limit)


def _cut(text: str, separators: tuple[str, ...], tokenize: Tokenize, limit: int) -> Iterator[str]:
    *parts, last = text.split(separators[0])
    for part in [*(part + separators[0] for part in parts), last]:
        if len(separators) > 1 and len(tokenize(part)) > limit:
            yield from _cut(part, separators[1:], tokenize, limit)
        else:
            yield part


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise ChunkError(f"{path} holds no text files; looked for {', '.join(SUFFIXES)}")
    return found


def _read_text(file: Path) -> str:
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ChunkError(f"{file} is not UTF-8 text; give text or Markdown files") from error
    except OSError as error:
        raise ChunkError(f"{file} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        raise ChunkError(f"{file} is a binary file; give text or Markdown files")
    if not text.strip():
        raise EmptyChunkError(f"{file} is empty; leave it out")
    return text
