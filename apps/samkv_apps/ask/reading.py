"""Read files as LlamaIndex documents, cut into pieces that its splitter handles quickly."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import Document

from samkv_rag.checks import half_pair_at
from samkv_rag.exceptions import ConfigurationError

SUFFIXES = (".txt", ".md", ".markdown", ".pdf")
_MAX_CHARS = 50_000
"""The splitter's time grows with the square of a document's length."""
_LONG_WORD = re.compile(r"\S{200}(?=\S)")
_HIDDEN = ["file_path", "page_label"]


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files in ``paths``, and the text, Markdown and PDF files in their folders.

    Raises:
        ConfigurationError: a path does not exist, or there are no such files.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"{path} does not exist; give files or folders")
        inside = sorted(_inside(path)) if path.is_dir() else [path]
        files = [file for file in inside if file.is_file() and (file.suffix.lower() in SUFFIXES or file == path)]
        found += [file for file in files if _has_unicode_name(file)]
    if not found:
        raise ConfigurationError(f"there are no files with {', '.join(SUFFIXES)}; give other files or folders")
    return list(dict.fromkeys(file.resolve() for file in found))


def _inside(folder: Path) -> Iterator[Path]:
    """Yield the files in ``folder`` and in its folders, linked ones too, each once."""

    def unreadable(error: OSError) -> None:
        warnings.warn(f"{error.filename} could not be read and is left out: {error.strerror}", stacklevel=4)

    seen = set[str]()
    for place, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # links may go round in circles
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


def _has_unicode_name(file: Path) -> bool:
    if half_pair_at(str(file)) is None:
        return True
    warnings.warn(f"{str(file)!a} is left out: its name is not UTF-8; rename it", stacklevel=3)
    return False


def read_documents(files: Sequence[Path]) -> Iterator[Document]:
    """Yield the documents in ``files``, in pieces. A file that cannot be read is skipped with a warning.

    A piece's id is its file, page and number, so that LlamaIndex sees changes. The models do not read its
    metadata, which is for lists of sources.
    """
    for file in files:
        try:
            pages = SimpleDirectoryReader(input_files=[str(file)], errors="strict", raise_on_error=True).load_data()
        except Exception as error:  # readers raise anything on damaged files
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            warnings.warn(f"{file} could not be read and is left out: {reason}", stacklevel=2)
            continue
        for page_number, page in enumerate(pages):
            for number, text in enumerate(_pieces(page.text)):
                yield Document(
                    text=text,
                    id_=f"{file}#{page_number}.{number}",
                    metadata={"file_path": str(file), "page_label": page.metadata.get("page_label", "")},
                    excluded_llm_metadata_keys=_HIDDEN,
                    excluded_embed_metadata_keys=_HIDDEN,
                )


def cached_tokenizer(tokenize: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """Cache ``tokenize`` for short texts; a splitter tokenizes the same words again and again."""
    remembered = lru_cache(maxsize=100_000)(tokenize)
    return lambda text: remembered(text) if len(text) <= 32 else tokenize(text)


def _pieces(text: str) -> Iterator[str]:
    """Cut ``text`` at white space into pieces of at most ``_MAX_CHARS``; split words after 200 characters."""
    text = _LONG_WORD.sub(lambda found: found[0] + " ", text.replace("\0", ""))
    start = 0
    while start < len(text):
        stop = start + _MAX_CHARS
        if stop < len(text):
            cut = max(text.rfind(space, start, stop) for space in ("\n", " "))
            stop = cut + 1 if cut > start else stop
        if piece := text[start:stop].strip():
            yield piece
        start = stop
