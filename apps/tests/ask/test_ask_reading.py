"""Files become documents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode

from samkv_apps.ask.reading import cached_tokenizer, find_files, read_documents
from samkv_rag.exceptions import ConfigurationError
from support import tiny
from support.pdfs import pdf


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_files_are_found_in_folders_and_once(tmp_path: Path) -> None:
    kept = [write(tmp_path, name, "tide") for name in ("a.txt", "b.md", "sub/c.PDF")]
    named = write(tmp_path, "picture.rst", "tide")
    assert find_files([tmp_path, kept[0]]) == kept
    assert find_files([named]) == [named], "a file that is named is read whatever its suffix"
    with pytest.raises(ConfigurationError, match="missing does not exist"):
        find_files([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no files with"):
        find_files([tmp_path / "empty"])


def test_linked_folders_are_read_once_and_unreadable_ones_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, elsewhere = tmp_path / "docs", tmp_path / "elsewhere"
    kept = [write(docs, "a.txt", "tide"), write(elsewhere, "b.txt", "ebb")]
    (docs / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(docs)
    write(docs, "private/c.txt", "flood")
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # root may read everything
    with pytest.warns(UserWarning, match="private could not be read and is left out: Permission denied"):
        assert find_files([docs]) == kept


def test_a_name_that_is_not_utf8_is_warned_of_and_left_out(tmp_path: Path) -> None:
    good = write(tmp_path, "a.txt", "text")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    except OSError:
        pytest.skip("the file system takes no such names")
    with pytest.warns(UserWarning, match=r"caf.*is left out: its name is not UTF-8"):
        assert find_files([tmp_path]) == [good]


def test_text_markdown_and_pdf_are_read_and_a_model_reads_the_text_alone(tmp_path: Path) -> None:
    text = write(tmp_path, "a.txt", "The ebb.\r\n")
    markdown = write(tmp_path, "b.md", "# Tides\n\nThe flood.")
    paper = write(tmp_path, "c.pdf", pdf(["The first page.", "", "The third (page)."]))
    documents = list(read_documents([text, markdown, paper]))
    found = [(d.metadata["file_path"], d.metadata["page_label"], d.text) for d in documents]
    assert found[0] == (str(text), "", "The ebb.")
    assert [file for file, _, _ in found[1:-2]] == [str(markdown)] * (len(found) - 3)
    assert "The flood." in found[-3][2]
    assert found[-2:] == [(str(paper), "1", "The first page."), (str(paper), "3", "The third (page).")]
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert documents[0].get_content(metadata_mode=mode) == "The ebb."


@pytest.mark.parametrize("content", [b"%PDF-1.7\nno more", "Ebb à Årøya".encode("cp1252")], ids=["pdf", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_warned_of_and_left_out(tmp_path: Path, content: bytes) -> None:
    broken = write(tmp_path, "broken.pdf" if content.startswith(b"%PDF") else "broken.txt", content)
    sound = write(tmp_path, "sound.txt", "The ebb.")
    with pytest.warns(UserWarning, match="broken.* could not be read and is left out"):
        assert [document.text for document in read_documents([broken, sound])] == ["The ebb."]


def test_an_error_without_a_message_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_data(self: SimpleDirectoryReader) -> None:
        raise EOFError

    monkeypatch.setattr(SimpleDirectoryReader, "load_data", load_data)
    with pytest.warns(UserWarning, match="could not be read and is left out: EOFError"):
        assert list(read_documents([write(tmp_path, "a.txt", "The ebb.")])) == []


def test_pieces_lose_nothing_and_nul_is_dropped(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(20_000))
    pieces = list(read_documents([write(tmp_path, "a.txt", f"\0{text}")]))
    assert " ".join(piece.text for piece in pieces) == text
    assert len({piece.doc_id for piece in pieces}) == len(pieces) > 1


@pytest.mark.parametrize("text", ["lantern granite keeper " * 440_000, "a" * 10_000_000], ids=["words", "letters"])
def test_ten_megabytes_on_a_line_are_split_soon(tmp_path: Path, text: str) -> None:
    """Tokenizers and splitters take longer than linear for long texts, and some split the same text over and over."""
    file, tokenizer, lengths = write(tmp_path, "long.txt", text), tiny.tokenizer(), list[int]()

    def encode(piece: str) -> list[int]:
        lengths.append(len(piece))
        return tokenizer.encode(piece)  # type: ignore[no-any-return]

    splitter = SentenceSplitter(chunk_size=256, chunk_overlap=0, tokenizer=cached_tokenizer(encode))
    nodes = splitter.get_nodes_from_documents(list(read_documents([file])))
    assert sum(lengths) < 4 * len(text)
    assert max(lengths) <= 100_000
    assert sum(len(node.get_content()) for node in nodes) > 0.95 * len(text)
    assert all(len(tokenizer.encode(node.get_content())) < 2 * 256 for node in nodes[:50])
