"""The operating system's and SQLite's errors as ours, where they can be told apart."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samkv_rag.exceptions import StoreError, StoreFormatError, StoreFullError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Map what goes wrong below ``folder``.

    Raises:
        StoreFullError: no room on the disk.
        StoreFormatError: the place cannot hold a store.
        StoreError: the disk refuses for another reason, such as being read-only; or the index cannot be used,
            such as while another process keeps it locked, or when it is closed.
    """
    try:
        yield
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise StoreFormatError(f"{folder} cannot hold a store ({error.strerror}); use another folder") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from error
        problem = error.strerror or error
        raise StoreError(f"the disk under {folder} refuses ({problem}); check that it is there and sound") from error
    except sqlite3.Error as error:
        if "full" in str(error):
            raise _full(folder) from error
        if "closed database" in str(error):
            raise StoreError(f"the store at {folder} is closed; open it again") from error
        remedy = "try again later" if "locked" in str(error) else "see samkv store rebuild-index"
        raise StoreError(f"the index of {folder} cannot be used ({error}); {remedy}") from error


def _full(folder: Path) -> StoreFullError:
    return StoreFullError(
        f"the disk under {folder} is full; free some space or prune the store. Stored chunks are intact"
    )
