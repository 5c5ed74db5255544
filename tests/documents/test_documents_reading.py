"""Text files: what is read of them, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from samkv_rag.documents import Page, reading
from samkv_rag.documents.reading import read_documents
from samkv_rag.exceptions import ChunkError, EmptyChunkError


def test_text_is_utf_8_with_or_without_its_mark_and_any_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("\ufeffCafé\r\nLine".encode())
    (document,) = read_documents([tmp_path]).documents
    assert (document.file, document.pages) == (tmp_path / "a.md", (Page("Café\nLine"),))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("café".encode("latin-1"), r"a\.txt is not UTF-8 text \(byte 3\); save it as UTF-8"),
        ("text".encode("utf-16"), r"a\.txt is not UTF-8 text but UTF-16; save it as UTF-8"),
        (b"PK\x03\x04\x00\x00", r"a\.txt is a binary file"),
        (b" \n\t", r"a\.txt is empty; leave it out"),
    ],
)
def test_what_is_no_text_is_said_and_the_rest_goes_on(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ChunkError, match=words):
        read_documents([tmp_path])
    (tmp_path / "b.txt").write_text("Something to read.")
    found = read_documents([tmp_path])
    assert [document.file.name for document in found.documents] == ["b.txt"]
    assert len(found.problems) == 1


def test_when_nothing_can_be_read_the_first_reason_is_given(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(ChunkError, match=r"none of 3 files can be read; the first: .*a\.txt is empty"):
        read_documents([tmp_path])
    with pytest.raises(EmptyChunkError):
        read_documents([tmp_path / "a.txt"])


@pytest.mark.parametrize("name", ["a.txt", "a.pdf"])
def test_a_huge_file_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(reading, "MAX_TEXT_BYTES", 10)
    monkeypatch.setattr(reading, "MAX_PDF_BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("opened"))
    (tmp_path / name).write_text("eleven char")
    with pytest.raises(ChunkError, match=rf"{name} has 11 bytes, the limit is 10; split it"):
        read_documents([tmp_path])
