"""Files private to their owner, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

WRITING_PREFIX = ".writing-"
"""How temporary files are named; one whose writer died is rubbish."""


def make_private_folder(folder: Path) -> None:
    """Make a folder and those above it where absent, each with mode 0700."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` (mode 0600): readers see the old file or the new one, never half of it.

    Raises:
        OSError: nothing was written, and the old file stands.
    """
    # The temporary file lies in the same folder: a rename is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=WRITING_PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
