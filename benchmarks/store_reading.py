"""Reading chunk caches from a warm disk store, against a plain read of the same files.

10 chunks of 500 tokens are opened and brought into one prompt's columns layer by layer, as an engine does, and
their hidden states are read: everything that the default method reads of a chunk. ``first`` is the same in a
process that has not read these files before, and so verifies their checksums; ``plain`` reads the files whole
into one buffer. Speeds are stored bytes a second of processor time, the best of some rounds, which take turns:
nothing waits for a disk here, and other load on the machine counts less.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import open_chunk, random_chunk, random_decoder, store_chunks
from samkv_rag.chunk_cache import ChunkReader
from samkv_rag.config import KVDtype
from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.layout import PromptLayout, Segment
from samkv_rag.sparse.plan import make_plan
from samkv_rag.sparse.reading import LayerReader
from samkv_rag.store import DiskStore

NUM_CHUNKS, CHUNK_TOKENS = 10, 500
_KV_DTYPES: tuple[KVDtype, ...] = ("bfloat16", "int8", "int4")


@dataclass(frozen=True)
class Row:
    """Speeds in 10⁹ stored bytes a second of processor time."""

    kv_dtype: str
    file_bytes: int
    plain_gb_s: float
    warm_gb_s: float
    first_gb_s: float
    warm_s: float
    """Processor seconds for all chunks."""

    @property
    def of_plain(self) -> float:
        """Speed against the plain read's."""
        return self.warm_gb_s / self.plain_gb_s


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every dtype and print its line."""
    decoder = random_decoder(options.shape, torch.device("meta"))  # shapes alone, no weights
    shallow = random_decoder(options.shape, torch.device("cpu"), num_layers=1)  # all that a LayerReader asks of one
    print(f"{NUM_CHUNKS} chunks of {CHUNK_TOKENS} tokens, {options.shape} shape, best of {options.rounds}")
    print(_COLUMNS.format("stored in", "MB", "plain GB/s", "warm GB/s", "of plain", "first GB/s", "warm ms"))
    rows = []
    for kv_dtype in _KV_DTYPES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows.append(_measure(Path(folder), decoder, shallow, kv_dtype, options.rounds))
        print(_line(rows[-1]), flush=True)
    setup = {"shape": options.shape, "chunks": NUM_CHUNKS, "chunk_tokens": CHUNK_TOKENS, "rounds": options.rounds}
    return {"setup": setup, "rows": [asdict(row) for row in rows]}


@torch.inference_mode()
def _measure(folder: Path, decoder: Decoder, shallow: Decoder, kv_dtype: KVDtype, rounds: int) -> Row:
    with DiskStore(folder) as store:
        caches = (random_chunk(decoder, CHUNK_TOKENS, seed) for seed in range(NUM_CHUNKS))
        keys = store_chunks(store, (replace(cache, kv_dtype=kv_dtype) for cache in caches))
        files = sorted(folder.rglob("*.safetensors"))
        file_bytes = sum(file.stat().st_size for file in files)
        buffer = bytearray(max(file.stat().st_size for file in files))
        seconds = _best_of(
            rounds,
            lambda: _read_plainly(files, buffer),
            lambda: _read_chunks(store, keys, shallow, decoder.num_layers),
            lambda: _read_first(folder, keys, shallow, decoder.num_layers),
        )
    plain_gb_s, warm_gb_s, first_gb_s = (file_bytes / s / 1e9 for s in seconds)
    return Row(kv_dtype, file_bytes, plain_gb_s, warm_gb_s, first_gb_s, warm_s=seconds[1])


def _best_of(rounds: int, *actions: Callable[[], float]) -> list[float]:
    """Least seconds of each action; they take turns, so that what else the machine does meets all alike."""
    return [
        min(seconds) for seconds in zip(*([action() for action in actions] for _ in range(rounds + 1)), strict=True)
    ]


def _read_plainly(files: Sequence[Path], buffer: bytearray) -> float:
    started = time.thread_time()
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.readv(file, [buffer])
        os.close(file)
    return time.thread_time() - started


def _read_chunks(store: DiskStore, keys: Sequence[str], decoder: Decoder, num_layers: int) -> float:
    """Seconds to open the chunks and to read and assemble every layer and the hidden states."""
    started = time.thread_time()
    readers = [open_chunk(store, key) for key in keys]
    layout = PromptLayout(list(_segments(readers)), torch.device("cpu"))
    plan = make_plan(layout, kept=torch.ones_like(layout.is_text))
    reader = LayerReader(decoder, plan)
    states = torch.empty(2, 1, decoder.num_kv_heads, layout.num_tokens, decoder.head_dim, dtype=decoder.dtype)
    for layer in range(num_layers):
        reader.assemble(states, layer)
    for chunk in readers:
        chunk.resume_hidden()
    return time.thread_time() - started


def _read_first(folder: Path, keys: Sequence[str], decoder: Decoder, num_layers: int) -> float:
    with DiskStore(folder) as store:
        return _read_chunks(store, keys, decoder, num_layers)


def _segments(readers: Sequence[ChunkReader]) -> Iterator[Segment]:
    start = 0
    for reader in readers:
        yield Segment("chunk", reader.token_ids, start, reader)
        start += len(reader.token_ids)


_COLUMNS = "{:<10} {:>8} {:>11} {:>10} {:>9} {:>11} {:>8}"


def _line(row: Row) -> str:
    speeds = (f"{row.plain_gb_s:.2f}", f"{row.warm_gb_s:.2f}", f"{row.of_plain:.0%}", f"{row.first_gb_s:.2f}")
    return _COLUMNS.format(row.kv_dtype, f"{row.file_bytes / 1e6:.1f}", *speeds, f"{row.warm_s * 1e3:.1f}")
