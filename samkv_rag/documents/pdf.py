"""PDF by pypdf: the text of every page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from samkv_rag.documents.layout import running_texts
from samkv_rag.exceptions import ChunkError, EmptyChunkError

if TYPE_CHECKING:
    from pypdf import PdfReader


def read_pages(file: Path, data: bytes) -> list[str]:
    """Return the text of each page, in order; a page of pictures has an empty one.

    Raises:
        ChunkError: it is encrypted or damaged, or pypdf is not installed.
        EmptyChunkError: no page holds text.
    """
    if find_spec("pypdf") is None:
        raise ChunkError(f'{file} needs pypdf; pip install "samkv-rag[ask]"')
    with _silent_pypdf():
        texts = running_texts(_extracted(file, data))
    if not any(text.strip() for text in texts):
        raise EmptyChunkError(
            f"{file} holds no text, perhaps pictures of pages; recognise it first (OCR, with ocrmypdf say)"
        )
    return texts


def _extracted(file: Path, data: bytes) -> list[str]:
    from pypdf import PdfReader

    try:
        reader = PdfReader(BytesIO(data))
        _decrypt(file, reader)
        return [page.extract_text() for page in reader.pages]
    except ChunkError:
        raise
    except Exception as error:  # damage makes pypdf raise anything from KeyError to RecursionError
        problem = str(error) or type(error).__name__
        raise ChunkError(f"{file} is damaged ({problem}); make the PDF again, or print it to a new one") from error


def _decrypt(file: Path, reader: PdfReader) -> None:
    """Open what needs no password to be read, as viewers do."""
    from pypdf.errors import DependencyError

    try:
        locked = reader.is_encrypted and not reader.decrypt("")
    except (DependencyError, NotImplementedError):  # a cipher that is not installed, or not known
        locked = True
    if locked:
        raise ChunkError(f"{file} is encrypted; save a copy without a password")


@contextmanager
def _silent_pypdf() -> Iterator[None]:
    """Its notices on every oddity of a file name no file and ask for nothing."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
