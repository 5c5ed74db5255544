"""Which files are read: those given, and those of a folder whose names say that they are documents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from samkv_rag.exceptions import ChunkError

SUFFIXES = (".md", ".markdown", ".txt", ".rst", ".pdf")


@dataclass(frozen=True)
class FoundFiles:
    """Files to read, each once, and which folders could not be looked into."""

    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_files(paths: Iterable[Path]) -> FoundFiles:
    """Return the files of ``paths``, in order; folders are searched to the bottom.

    In a folder, names that begin with a dot are passed over, and so is everything that is no regular file.
    Links to files are read, links to folders are not entered, so that none leads in a circle.

    Raises:
        ChunkError: a path does not exist or is neither file nor folder, or a folder holds nothing to read.
    """
    problems: list[str] = []
    found = [file for path in paths for file in _files(path, problems)]
    return FoundFiles(list({os.path.abspath(file): file for file in found}.values()), problems)


def _files(path: Path, problems: list[str]) -> list[Path]:
    if path.is_dir():
        return _files_of_folder(path, problems)
    if not path.exists():
        raise ChunkError(f"{path} does not exist; give a file or a folder")
    if not path.is_file():
        raise ChunkError(f"{path} is neither a file nor a folder; give one of these")
    return [path]


def _files_of_folder(folder: Path, problems: list[str]) -> list[Path]:
    found = sorted(_walk(folder, problems))
    if not found:
        raise ChunkError("; ".join(problems) or f"{folder} holds no files to read; looked for {', '.join(SUFFIXES)}")
    return found


def _walk(folder: Path, problems: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for where, folders, names in os.walk(folder, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(where, name) for name in names if not name.startswith("."))
        # What does not exist is a link to nothing: to be told of, unlike a pipe, which would never end.
        yield from (f for f in files if f.suffix.lower() in SUFFIXES and (f.is_file() or not f.exists()))
