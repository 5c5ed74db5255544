"""Which chunks are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True)
class Pending:
    """A chunk to be computed."""

    text: str
    token_ids: list[int]


def batches(pending: Sequence[Pending], device_type: str) -> Iterator[list[Pending]]:
    """Batches of chunks of like length, bounded in tokens, padding included."""
    batch_tokens = _BATCH_TOKENS.get(device_type, _BATCH_TOKENS["cpu"])
    batch: list[Pending] = []
    for item in sorted(pending, key=lambda item: len(item.token_ids)):
        if batch and (len(batch) + 1) * len(item.token_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
