"""PDF files: their text as running text, page by page."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import pdfs
from samkv_rag.documents import pdf as pdf_module
from samkv_rag.documents import read_documents, split_document
from samkv_rag.documents.layout import running_texts
from samkv_rag.exceptions import ChunkError


def read(tmp_path: Path, data: bytes) -> dict[int | None, str]:
    """Page number to text of a PDF."""
    (tmp_path / "a.pdf").write_bytes(data)
    (document,) = read_documents([tmp_path / "a.pdf"]).documents
    return {page.number: page.text for page in document.pages}


def test_each_page_keeps_its_number_and_pages_of_pictures_are_left_out(tmp_path: Path) -> None:
    pages = read(tmp_path, pdfs.pdf(["The lens (of 1868) is large.", "", "The lamp\nis small."]))
    assert pages == {1: "The lens (of 1868) is large.", 3: "The lamp is small."}


def test_a_chunk_says_which_page_it_stands_on(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdfs.pdf(["First page.", "Second page."]))
    (document,) = read_documents([tmp_path]).documents
    found = [(chunk.page, chunk.text) for chunk in split_document(document, lambda text: list(range(len(text))))]
    assert found == [(1, "First page."), (2, "Second page.")]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("The light-\nhouse stands.", "The lighthouse stands."),
        ("A light-house; the light-\nhouse stands.", "A light-house; the light-house stands."),
        ("From 1914-\n1918 it was dark.", "From 1914-1918 it was dark."),
        ("The Anglo-\nSaxon wall.", "The Anglo-Saxon wall."),
        ("The light\u00ad\nhouse, re\u00adlit.", "The lighthouse, relit."),
        ("It began\nslowly. Then\nMr Aske came.", "It began slowly. Then\nMr Aske came."),
        ("Stores:\noil\n\n\n\nwicks", "Stores:\noil\n\nwicks"),
        ("the \ufb01rst \ufb02ame", "the first flame"),
        ("a  \t b\u00a0c \n", "a b c"),
        ("bell\x07 and \ud835half", "bell and half"),
    ],
)
def test_what_line_ends_broke_is_joined(page: str, expected: str) -> None:
    assert running_texts([page]) == [expected]


def test_the_rest_of_the_document_tells_whether_a_hyphen_stays() -> None:
    assert running_texts(["the light-\nhouse", "a light-house"]) == ["the light-house", "a light-house"]


def test_a_pdf_is_known_by_its_first_bytes_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(pdfs.pdf(["The lens is large."]))
    assert read_documents([tmp_path]).documents[0].pages[0].number == 1


def test_one_that_needs_no_password_to_be_read_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, pdfs.encrypted(pdfs.pdf(["The lens is large."]), "")) == {1: "The lens is large."}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pdfs.encrypted(pdfs.pdf(["Secret."]), "secret"), "is encrypted; save a copy without a password"),
        (pdfs.pdf(["", ""]), r"holds no text, perhaps pictures of pages; recognise it first \(OCR"),
        (b"%PDF-1.7\n" + b"\xffnonsense" * 100, r"is damaged \(.*\); make the PDF again"),
        (pdfs.pdf(["Text."])[:150], "is damaged"),
        (b"", "is damaged"),
    ],
    ids=["encrypted", "scanned", "noise", "cut", "empty"],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, data: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.pdf").write_bytes(data)
    with pytest.raises(ChunkError, match=rf"a\.pdf {words}"):
        read_documents([tmp_path])
    assert not caplog.records
    assert logging.getLogger("pypdf").level == logging.NOTSET


def test_without_pypdf_only_pdf_files_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_module, "find_spec", lambda name: None)
    (tmp_path / "a.pdf").write_bytes(pdfs.pdf(["Text."]))
    (tmp_path / "b.md").write_text("Text.")
    found = read_documents([tmp_path])
    assert [document.file.name for document in found.documents] == ["b.md"]
    assert found.problems == (f'{tmp_path / "a.pdf"} needs pypdf; pip install "samkv-rag[ask]"',)
