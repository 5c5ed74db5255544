"""Temporary files that killed writers left in a shared folder.

Unlike a disk store's they are not told by a lock, which not every network file system passes on, but by
their age: no write takes a day.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from samkv_rag.store.shared.private_files import WRITING_PREFIX

LEFTOVER_AGE_S = 24 * 3600.0
_TABLES = ("chunks", "index", "references")


def remove_leftovers(root: Path, older_than_s: float = LEFTOVER_AGE_S) -> int:
    """Delete what writers left below a store's folder and return how many files; what cannot be deleted stays."""
    before_s = time.time() - older_than_s
    return sum(_remove_from(folder, before_s) for folder in [str(root), *_folders(root)])


def _folders(root: Path) -> Iterator[str]:
    """Where a store writes; links are not followed."""
    for table in _TABLES:
        with suppress(OSError), os.scandir(root / table) as entries:
            yield from (entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _remove_from(folder: str, before_s: float) -> int:
    number = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(WRITING_PREFIX):
                number += int(_remove_if_old(entry, before_s))
    return number


def _remove_if_old(entry: os.DirEntry[str], before_s: float) -> bool:
    with suppress(OSError):  # gone already, or another user's
        if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_mtime < before_s:
            os.unlink(entry.path)
            return True
    return False
