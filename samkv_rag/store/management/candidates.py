"""Files that may be chunks, in a tar file or a folder. Nothing of one is in memory before it is asked for.

Neither the size that an archive claims for a member nor a hole in a file costs memory, and nothing but
plain files is opened: no link in an archive is followed, no pipe or device in a folder is waited for.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from samkv_rag.exceptions import StoreFormatError
from samkv_rag.store.format.byte_source import FileBytes

MAX_CHUNK_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Candidate:
    """A file, or a part of one, to be read if it is a chunk."""

    name: str
    path: Path
    start: int
    num_bytes: int
    problem: str = ""
    """Why it is not even looked into, where that is so."""

    def open(self) -> FileBytes:
        """Its bytes.

        Raises:
            OSError: it cannot be opened.
        """
        return FileBytes(self.path, self.start, self.num_bytes)


def candidates(source: Path) -> Iterator[Candidate]:
    """Whatever is in a tar file; or the files in a folder, and in those below it, that are named like chunks.

    Raises:
        StoreFormatError: no such file, or not a tar file, or not all of it.
    """
    yield from _in_folder(source) if source.is_dir() else _in_tar(source)


def _in_folder(folder: Path) -> Iterator[Candidate]:
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            status = path.stat()
        except OSError as error:
            yield Candidate(path.name, path, 0, 0, f"unreadable ({error.strerror})")
            continue
        is_file = stat.S_ISREG(status.st_mode)
        yield Candidate(path.name, path, 0, status.st_size, _problem(status.st_size, is_file, is_sparse=False))


def _in_tar(path: Path) -> Iterator[Candidate]:
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                problem = _problem(member.size, member.isreg(), member.issparse())
                if not problem and member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                yield Candidate(member.name, path, member.offset_data, member.size, problem)
    # Headers made to do harm bring forth more than the errors of the package.
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise StoreFormatError(f"{path} is not a tar file of chunks, or not a whole one ({error})") from error


def _problem(num_bytes: int, is_file: bool, is_sparse: bool) -> str:
    if not is_file:
        return "it is no file"
    if is_sparse:
        return "it is stored sparsely, as no export does; pack it again without holes"
    if not 0 <= num_bytes <= MAX_CHUNK_BYTES:
        return f"it takes {num_bytes:,} bytes, a chunk at most {MAX_CHUNK_BYTES:,}"
    return ""
