"""Files as LlamaIndex documents, cut so that its splitter stays fast whatever they hold."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.schema import Document

from samkv_rag.exceptions import ConfigurationError

SUFFIXES = (".txt", ".md", ".markdown", ".pdf")
_MAX_CHARS = 50_000
"""The splitter's time grows with the square of what one document holds."""
_LONG_WORD = re.compile(r"\S{200}(?=\S)")
_HIDDEN = ["file_path", "page_label"]


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Text, Markdown and PDF files among ``paths`` and in the folders among them.

    Raises:
        ConfigurationError: a path is not there, or there are no such files.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"{path} is not there; give files or folders")
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and (file.suffix.lower() in SUFFIXES or file == path)]
    if not found:
        raise ConfigurationError(f"no files with {', '.join(SUFFIXES)} there; give others")
    return list(dict.fromkeys(file.resolve() for file in found))


def read_documents(files: Sequence[Path]) -> Iterator[Document]:
    """The documents in ``files``, in pieces; what cannot be read is warned of and left out.

    A piece's id is its file, page and number, so that LlamaIndex sees what has changed. Its metadata is for
    lists of sources; neither the language model nor the embedding model reads it.
    """
    for file in files:
        try:
            pages = SimpleDirectoryReader(input_files=[str(file)], errors="strict", raise_on_error=True).load_data()
        except Exception as error:  # whatever a reader of damaged files raises
            warnings.warn(f"{file} could not be read and is left out: {str(error).splitlines()[0][:200]}", stacklevel=2)
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
    """``tokenize``, remembering short texts: a splitter asks for the same words again and again."""
    remembered = lru_cache(maxsize=100_000)(tokenize)
    return lambda text: remembered(text) if len(text) <= 32 else tokenize(text)


def _pieces(text: str) -> Iterator[str]:
    """``text`` in pieces of at most ``_MAX_CHARS``, cut at white space; words are broken after 200."""
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
