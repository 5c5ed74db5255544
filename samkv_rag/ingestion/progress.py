"""A progress bar for ingestion."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm


def chunk_progress(total: int, show_progress: bool | None) -> tqdm[NoReturn]:
    """A bar of ``total`` chunks; None shows it on a terminal only."""
    # disable=None lets tqdm decide by whether standard error is a terminal.
    disable = (None if show_progress is None else not show_progress) if total else True
    return tqdm(total=total, desc="Caching chunks", unit="chunk", disable=disable)
