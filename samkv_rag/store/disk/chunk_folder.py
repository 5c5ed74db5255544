"""The chunk files of a disk store: where they lie, how one is written, what a killed writer left behind.

FOLDER/chunks/ab/abcd….safetensors      named by the chunk's key, a hash
FOLDER/chunks/ab/.writing-…             being written; locked by its writer for as long as it lives
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from samkv_rag.store.shared.hashes import is_hash, require_hash
from samkv_rag.store.shared.private_files import WRITING_PREFIX

try:
    import fcntl
except ImportError:  # not on Windows, where an open file cannot be deleted anyway
    fcntl = None  # type: ignore[assignment]


class ChunkFolder:
    """Files by key. All are private to their owner: folders 0700, files 0600."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self) -> None:
        """Make the folder where absent."""
        self.folder.mkdir(exist_ok=True, mode=0o700)

    def path(self, key: str) -> Path:
        """Where the chunk of ``key`` lies, or would.

        Raises:
            StoreError: not a key.
        """
        return self.folder / require_hash(key)[:2] / f"{key}.safetensors"

    def files(self) -> Iterator[Path]:
        """Every chunk file, in the order of keys."""
        for folder in self._subfolders():
            yield from sorted(path for path in folder.glob("*.safetensors") if is_hash(path.stem))

    @contextmanager
    def written(self, key: str, pieces: Iterable[bytes | memoryview]) -> Iterator[Path]:
        """A temporary file of ``pieces`` beside the place of ``key``; to be renamed, else it is deleted."""
        # Beside it, because a rename is atomic only within one file system.
        folder = self.path(key).parent
        folder.mkdir(exist_ok=True, mode=0o700)
        descriptor, temporary = _create_locked(folder)
        try:
            for piece in pieces:
                _write_all(descriptor, piece)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)

    def remove_leftovers(self) -> list[str]:
        """Delete the temporary files of writers that are no more and return their names."""
        temporaries = [path for folder in self._subfolders() for path in sorted(folder.glob(f"{WRITING_PREFIX}*"))]
        return [path.name for path in temporaries if _remove_if_abandoned(path)]

    def _subfolders(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir()) if self.folder.is_dir() else []


def _create_locked(folder: Path) -> tuple[int, Path]:
    """A new temporary file, open and locked."""
    while True:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=WRITING_PREFIX)  # 0600
        if fcntl is None:
            return descriptor, Path(name)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # taken for a leftover between its creation and its lock


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _remove_if_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between listing and locking its writer may have renamed it: that name is gone then.
        path.unlink()
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return False
    finally:
        os.close(descriptor)
    return True
