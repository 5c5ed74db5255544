"""A folder of documents, and a library on it with a tiny model and an embedding that counts words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pdfs
from support import tiny
from asking import WordCounts
from samkv_rag import SamKVEngine
from samkv_rag.ask.index import PassageIndex, open_index
from samkv_rag.ask.library import Library, Update
from samkv_rag.ask.screen import Screen
from samkv_rag.documents import find_files


@pytest.fixture
def embed() -> WordCounts:
    """An embedding that counts words."""
    return WordCounts()


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    """A folder with a text, a Markdown and a PDF file; four passages in all."""
    folder = tmp_path / "handbook"
    (folder / "more").mkdir(parents=True)
    (folder / "one.md").write_text(f"# Note\n\n{tiny.text(1)}\n")
    (folder / "more" / "two.txt").write_text(tiny.text(2))
    (folder / "three.pdf").write_bytes(pdfs.pdf([tiny.text(3), "", tiny.text(4)]))
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PassageIndex]:
    """An empty index."""
    with open_index(tmp_path / "index.sqlite") as opened:
        yield opened


@pytest.fixture
def engine(make_engine: Callable[..., SamKVEngine], tmp_path: Path) -> SamKVEngine:
    """A tiny model with its KV on disk."""
    return make_engine(store=tmp_path / "kv")


@pytest.fixture
def library(index: PassageIndex, engine: SamKVEngine, embed: WordCounts, tmp_path: Path) -> Library:
    """A library with nothing in it."""
    return Library(index, engine, embed, "scope", tmp_path)


@pytest.fixture
def update(library: Library) -> Callable[[Path], Update]:
    """A function: a folder brings the library into step with its files."""
    return lambda folder: library.update(find_files([folder]), Screen(quiet=True))
