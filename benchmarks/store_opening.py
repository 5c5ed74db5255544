"""Opening a large disk store, up to the point at which an engine knows its chunks.

The index has a line for each of ``--num-chunks`` chunks; their files are not there, since opening looks
at none. Every figure is the best of ``--rounds``, each with a store opened anew.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.synthetic import FINGERPRINT
from samkv_rag.chunk_cache import Layout, chunk_key
from samkv_rag.ingestion.bulk import collection_paused
from samkv_rag.prompt import ChunkIndex, KnownText, describe
from samkv_rag.store import DiskStore, Entry, Origin
from samkv_rag.store.disk import index_table
from samkv_rag.store.disk.index_table import StoredChunk

_CHUNK_BYTES = 6_000_000


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for each step, on a warm file cache."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _fill(Path(folder), options.num_chunks)
        rounds = [_steps_s(Path(folder)) for _ in range(options.rounds)]
        index_bytes = sum(path.stat().st_size for path in Path(folder).glob("index.sqlite*"))
    best = {step: round(min(one[step] for one in rounds), 4) for step in rounds[0]}
    figures = {"num_chunks": options.num_chunks, "index_bytes": index_bytes, **best}
    print("open: " + ", ".join(f"{name} {value:,}" for name, value in figures.items()), flush=True)
    return figures


def _steps_s(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    with DiskStore(folder) as store:
        opened = time.perf_counter()
        with collection_paused():  # as the engine does
            entries, mark = store.changes(FINGERPRINT, 0) or ([], 0)
            listed = time.perf_counter()
            ChunkIndex().add(KnownText(e.text_digest, e.prefix, e.suffix, e.num_chars) for e in entries)
            recognised = time.perf_counter()
        store.changes(FINGERPRINT, mark)
        asked_again = time.perf_counter()
        store.index.read(lambda index: index_table.least_valuable(index, 10 * _CHUNK_BYTES, time.time()))
        chosen = time.perf_counter()
    return {
        "open_s": opened - started,
        "list_entries_s": listed - opened,
        "open_and_list_s": listed - started,
        "index_prefixes_s": recognised - listed,
        "open_until_prompts_are_read_s": recognised - started,
        "ask_for_changes_again_s": asked_again - recognised,
        "choose_what_to_evict_s": chosen - asked_again,
    }


def _fill(folder: Path, num_chunks: int) -> None:
    def insert(index: sqlite3.Connection) -> int:
        return index_table.insert_all(index, _stored_chunks(num_chunks))

    with DiskStore(folder) as store:
        store.index.write(insert)


def _stored_chunks(num_chunks: int) -> Iterator[StoredChunk]:
    layout, origin, now_s = Layout(4, 4, 16, 6), Origin("tenant", FINGERPRINT, "Qwen2.5-0.5B"), time.time()
    for number in range(num_chunks):
        known = describe(f"{number} is where this chunk's text begins, and this is where it ends: {number}")
        key, ends = chunk_key(FINGERPRINT, known.text_digest), (known.prefix, known.suffix)
        entry = Entry(key, known.text_digest, *ends, known.num_chars, 500, layout, origin)
        yield StoredChunk(entry, FINGERPRINT, _CHUNK_BYTES, now_s, now_s - number)
