"""Reading chunk caches from a warm disk store, and opening a large one.

    python -m benchmarks.store [--chunks 100000] [--json FILE]

Reading: 10 chunks of 500 tokens are opened and brought layer by layer into one buffer, as a prefill does.
``plain`` reads the same files whole; ``library`` is the safetensors library's memory map of them, copied into
the same buffer; ``first`` is the first reading of a process, which compares checksums. Processor seconds, the
best of some rounds that take turns. Opening: from a folder to an engine's index of all its chunks; the files
themselves are not there, since opening looks at none.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open as untyped_safe_open

from benchmarks.machine import describe_machine
from benchmarks.synthetic import SHAPES
from samkv_rag.chunk_cache import ChunkCache, Summary
from samkv_rag.ingestion.recognition import ChunkIndex, describe
from samkv_rag.store import Store, open_store
from samkv_rag.store.catalog import Catalog
from samkv_rag.store.codec import ChunkIdentity, StoredChunk, encode_chunk

safe_open: Any = untyped_safe_open
NUM_CHUNKS, CHUNK_TOKENS = 10, 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=SHAPES)
    parser.add_argument("--chunks", type=int, default=100_000, help="of the store that is opened")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = {
        "machine": describe_machine(),
        "setup": {"shape": options.shape, "chunks": NUM_CHUNKS, "chunk_tokens": CHUNK_TOKENS, "rounds": options.rounds},
        "reading": {dtype: measure_reading(options.shape, dtype, options.rounds) for dtype in ("bfloat16", "int8")},
        "opening": measure_opening(options.chunks),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


def measure_reading(shape: str, kv_dtype: str, rounds: int) -> dict[str, float]:
    """Processor milliseconds to read all chunks in each way."""
    with tempfile.TemporaryDirectory() as folder, open_store(folder) as store:
        identities = [_identity(number) for number in range(NUM_CHUNKS)]
        for number, identity in enumerate(identities):
            store.put(identity.key, encode_chunk(_random_chunk(shape, number), identity, kv_dtype))
        files = sorted(Path(folder).rglob("*.safetensors"))
        file_bytes = sum(file.stat().st_size for file in files)
        keys = [identity.key for identity in identities]
        blob = store.get(keys[0])
        assert blob is not None
        checked = set(StoredChunk(blob).tensors)
        ways: dict[str, Callable[[], None]] = {
            "plain": lambda: _read_plainly(files),
            "warm": lambda: _read_chunks(store, keys, shape, checked),
            "first": lambda: _read_chunks(store, keys, shape, set()),
        }
        if kv_dtype == "bfloat16":  # the library does not dequantise
            ways["library"] = lambda: _read_by_library(files, shape)
        best = {name: float("inf") for name in ways}
        for _ in range(rounds + 1):
            for name, way in ways.items():
                started = time.thread_time()
                way()
                best[name] = min(best[name], time.thread_time() - started)
    return {"file_bytes": file_bytes, **{f"{name}_ms": 1e3 * seconds for name, seconds in best.items()}}


def measure_opening(num_chunks: int) -> dict[str, float]:
    """Seconds until a new process's engine would know its chunks: the catalog read and an index made of it."""
    with tempfile.TemporaryDirectory() as folder:
        with open_store(folder) as store:
            catalog = Catalog(store)
            catalog.add(_identity(number) for number in range(num_chunks))
            catalog.close()
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            with open_store(folder) as store:
                catalog, index = Catalog(store), ChunkIndex()
                index.add(catalog.news(_FINGERPRINT))
                index.find("a prompt that is long enough to be looked through for chunks")
                seconds.append(time.perf_counter() - started)
                assert len(index) == num_chunks
                catalog.close()
    return {"chunks": num_chunks, "best_s": min(seconds)}


_FINGERPRINT = "random"


def _identity(number: int) -> ChunkIdentity:
    known = describe(f"Record {number}: what stands in a text of this number, told at some length.", CHUNK_TOKENS)
    return ChunkIdentity(_FINGERPRINT, *known)


def _random_chunk(shape: str, seed: int) -> ChunkCache:
    config, generator = SHAPES[shape], torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(torch.bfloat16)

    layers, heads, kv_heads, head_dim = _dimensions(shape)
    ids = torch.randint(0, config["vocab_size"], (CHUNK_TOKENS,), generator=generator)
    keys, values = (draw(layers, kv_heads, CHUNK_TOKENS, head_dim) for _ in range(2))
    means = Summary(
        draw(layers, kv_heads, CHUNK_TOKENS // 16, head_dim),
        draw(layers, kv_heads, head_dim),
        draw(layers, heads, head_dim),
    )
    return ChunkCache(ids, keys, values, means)


def _dimensions(shape: str) -> tuple[int, int, int, int]:
    config = SHAPES[shape]
    heads = config["num_attention_heads"]
    return config["num_hidden_layers"], heads, config["num_key_value_heads"], config["hidden_size"] // heads


def _buffer(shape: str) -> torch.Tensor:
    _, _, kv_heads, head_dim = _dimensions(shape)
    return torch.empty(2, kv_heads, NUM_CHUNKS * CHUNK_TOKENS, head_dim, dtype=torch.bfloat16)


def _read_plainly(files: Sequence[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.readv(descriptor, [bytearray(file.stat().st_size)])
        os.close(descriptor)


@torch.inference_mode()  # as in an engine
def _read_chunks(store: Store, keys: Sequence[str], shape: str, checked: set[str]) -> None:
    chunks = []
    for key in keys:
        blob = store.get(key)
        assert blob is not None
        chunks.append(StoredChunk(blob))
        chunks[-1].checked = set(checked)
    buffer = _buffer(shape)
    for layer in range(_dimensions(shape)[0]):
        for number, chunk in enumerate(chunks):
            target = buffer[:, :, number * CHUNK_TOKENS : (number + 1) * CHUNK_TOKENS]
            chunk.fill_layer(layer, target[0], target[1])


def _read_by_library(files: Sequence[Path], shape: str) -> None:
    opened = [safe_open(file, framework="pt") for file in files]
    buffer = _buffer(shape)
    for layer in range(_dimensions(shape)[0]):
        for number, file in enumerate(opened):
            for kind, place in zip(("keys", "values"), buffer, strict=True):
                found = file.get_tensor(f"layer.{layer:03}.{kind}")
                place[:, number * CHUNK_TOKENS : (number + 1) * CHUNK_TOKENS] = found


if __name__ == "__main__":
    main()
