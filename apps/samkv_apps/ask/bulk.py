"""Compute the KV of many chunks in several processes, with Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.data

from samkv_apps import cluster, terminal

_BATCH_CHUNKS = 64


class _Ingester:
    """One engine in its own process."""

    def __init__(self, **engine: Any) -> None:
        self._engine = terminal.open_engine(**engine)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        report = self._engine.add_chunks([str(text) for text in batch["text"]], show_progress=False)
        return {"num_added": [report.num_added]}


def ingest(texts: Sequence[str], num_processes: int, model: str, store: Path, **options: Any) -> int:
    """Compute and store the chunks that are not stored yet; return their number.

    Every process must reach model and store. ``options`` are those of ``SamKVEngine.from_pretrained``.
    """
    engine = {"model": cluster.model_for_all(model), "store": store.absolute(), **options}
    resources = cluster.start(num_processes)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"text": text} for text in dict.fromkeys(texts)]
    num_blocks = max(min(num_processes, len(rows)), len(rows) // _BATCH_CHUNKS)
    chunks = ray.data.from_items(rows, override_num_blocks=num_blocks)
    reports = chunks.map_batches(
        _Ingester, fn_constructor_kwargs=engine, batch_size=_BATCH_CHUNKS, concurrency=num_processes, **resources
    )
    return int(reports.sum("num_added") or 0)
