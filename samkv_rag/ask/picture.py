"""The picture of what was read, as a file."""

from __future__ import annotations

import os
from pathlib import Path

from samkv_rag.explanation import Explanation


def write_picture(explanation: Explanation, file: Path) -> None:
    """Draw an explanation to a .html or .png file, whole or not at all.

    Raises:
        OSError: it cannot be written; a file that was there stays.
    """
    is_page = file.suffix.lower() == ".html"
    data = explanation.to_html().encode("utf-8") if is_page else explanation.to_png()
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
