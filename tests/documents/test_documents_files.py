"""Which files of a folder are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samkv_rag.documents import find_files
from samkv_rag.documents.reading import read_documents
from samkv_rag.exceptions import ChunkError


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"Text of {name}.")


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in find_files([folder]).files]


def test_documents_are_found_to_the_bottom_and_others_are_not(tmp_path: Path) -> None:
    write(tmp_path, "b.md", "a/deep/c.TXT", "a/d.rst", "e.markdown", "f.pdf", "g.png", "h.py", "i")
    assert names(tmp_path) == ["a/d.rst", "a/deep/c.TXT", "b.md", "e.markdown", "f.pdf"]


def test_hidden_files_and_folders_are_passed_over_unless_given(tmp_path: Path) -> None:
    write(tmp_path, "a.md", ".b.md", ".git/c.md", "d/.e/f.md")
    assert names(tmp_path) == ["a.md"]
    hidden = [tmp_path / ".b.md", tmp_path / ".git" / "c.md"]
    assert find_files([tmp_path / ".b.md", tmp_path / ".git"]).files == hidden


def test_links_to_folders_are_not_entered_and_links_to_files_are_read(tmp_path: Path) -> None:
    write(tmp_path, "a/b.md")
    (tmp_path / "a" / "circle").symlink_to(tmp_path)
    (tmp_path / "a" / "c.md").symlink_to("b.md")
    (tmp_path / "self.md").symlink_to("self.md")
    assert names(tmp_path) == ["a/b.md", "a/c.md", "self.md"]
    reading = read_documents([tmp_path])
    assert len(reading.documents) == 2
    (problem,) = reading.problems
    assert "self.md cannot be read" in problem


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "a.md")
    os.mkfifo(tmp_path / "b.md")
    assert names(tmp_path) == ["a.md"]
    with pytest.raises(ChunkError, match=r"b\.md is neither a file nor a folder"):
        find_files([tmp_path / "b.md"])


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "b.md")
    found = find_files([tmp_path / "b.md", tmp_path, tmp_path / "." / "a.md"])
    assert [file.name for file in found.files] == ["b.md", "a.md"]


def test_a_file_that_is_given_may_have_any_name(tmp_path: Path) -> None:
    write(tmp_path, "notes.log")
    assert find_files([tmp_path / "notes.log"]).files == [tmp_path / "notes.log"]


def test_what_does_not_exist_or_holds_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ChunkError, match="missing does not exist"):
        find_files([tmp_path / "missing"])
    with pytest.raises(ChunkError, match=r"holds no files to read; looked for \.md"):
        find_files([tmp_path])


def test_a_folder_that_cannot_be_opened_is_told_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a.md", "closed/b.md")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_files([tmp_path])
    assert [file.name for file in found.files] == ["a.md"]
    assert found.problems == [f"{tmp_path / 'closed'} cannot be read: Permission denied"]
    assert read_documents([tmp_path]).problems == tuple(found.problems)
