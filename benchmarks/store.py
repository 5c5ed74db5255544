"""Times of a store: reading chunk caches, first tokens from slow and far places, opening a large catalog.

    python -m benchmarks.store [--chunks 100000] [--far redis://localhost:6379] [--json FILE]

Reading: opens 10 chunks of 500 tokens and reads them layer by layer into one buffer, as a prefill does. ``plain``
reads the same files whole. ``library`` copies from the safetensors library's memory map. ``first`` compares checksums,
as the first reading of a process does. Processor seconds, best of several alternating rounds.
Answers: milliseconds to the first token of a prompt of such chunks, the requests and the bytes. Median of several
rounds after a warm-up, each like the first of a new process. The places are a folder, a folder limited to 500 MB/s,
and those of ``--far``, where every request waits 5 ms.
Opening: from a folder to an engine's index of all its chunks. Opening reads the catalog only, so there are no files.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from safetensors import safe_open as untyped_safe_open

from benchmarks.machine import describe_machine
from benchmarks.synthetic import SHAPES, byte_tokenizer, chunk_text, prompt, random_model
from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.chunk_cache import ChunkCache, Summary
from samkv_rag.config import Storage
from samkv_rag.ingestion.recognition import ChunkIndex, describe
from samkv_rag.prefill import Scout
from samkv_rag.store import Blob, Store, open_store
from samkv_rag.store.base import Buffer, read_bytes
from samkv_rag.store.catalog import Catalog
from samkv_rag.store.codec import ChunkIdentity, StoredChunk, encode_chunk
from samkv_rag.store.unreachable import Part, RemoteStore

safe_open: Any = untyped_safe_open
NUM_CHUNKS, CHUNK_TOKENS = 10, 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=SHAPES)
    parser.add_argument("--chunks", type=int, default=100_000, help="of the store that is opened")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--far", nargs="*", default=[], metavar="URL", help="stores that answers are read from, too")
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="storage_options of --far")
    parser.add_argument("--answer-rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = {
        "machine": describe_machine(),
        "setup": {"shape": options.shape, "chunks": NUM_CHUNKS, "chunk_tokens": CHUNK_TOKENS, "rounds": options.rounds},
        "reading": {dtype: measure_reading(options.shape, dtype, options.rounds) for dtype in ("bfloat16", "int8")},
        "answers": measure_answers(options),
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
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda: [file.read_bytes() for file in files],
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


def measure_answers(options: argparse.Namespace) -> dict[str, Any]:
    """Time to first token, requests and bytes by storage and place."""
    model = random_model(options.shape, dtype=torch.bfloat16)
    texts = [chunk_text(number, CHUNK_TOKENS) for number in range(NUM_CHUNKS)]
    found: dict[str, Any] = {}
    for storage in get_args(Storage):
        with tempfile.TemporaryDirectory() as folder:
            computed = open_store(folder)
            places = {"folder": (open_store(folder), Meter()), "500 MB/s": (open_store(folder), Meter(0.0, 500e6))}
            for url in options.far:
                far = open_store(url, memory_bytes=0, storage_options=options.options)
                places[url.partition(":")[0]] = far, Meter(5e-3)
            for place, (store, meter) in places.items():
                if isinstance(store, RemoteStore):
                    for stored in computed.keys():
                        if blob := computed.get(stored.key):
                            store.put(stored.key, bytes(read_bytes(blob)))
                measure(store, meter)
                with SamKVEngine.from_pretrained(
                    model, tokenizer=byte_tokenizer(), store=store, config=EngineConfig(storage=storage)
                ) as engine:
                    engine.add_chunks(texts, show_progress=False)
                    found[f"{storage}, {place}"] = _answer(engine, meter, texts, options.answer_rounds)
    return found


def _answer(engine: SamKVEngine, meter: Meter, texts: list[str], rounds: int) -> dict[str, float]:
    ttft_ms = []
    for _ in range(rounds + 1):
        meter.num_requests = meter.num_bytes = 0
        engine._library._checked.clear()  # as a new process
        metrics = engine.generate(prompt(texts), method=Scout(), max_new_tokens=1).metrics
        assert metrics.chunks_hit == len(texts)
        ttft_ms.append(1e3 * metrics.ttft_s)
    return {"ttft_ms": median(ttft_ms[1:]), "requests": meter.num_requests, "bytes": meter.num_bytes}


class Meter:
    """Counts requests and their bytes, and makes them wait: for `latency_s` each, for `bytes_per_s` all together."""

    def __init__(self, latency_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s
        self.num_requests = self.num_bytes = 0
        self._lock = threading.Lock()

    def wait(self, num_bytes: int) -> None:
        """Count one request of so many bytes, and take its time."""
        time.sleep(self.latency_s)
        with self._lock:
            self.num_requests += 1
            self.num_bytes += num_bytes
            time.sleep(num_bytes / self.bytes_per_s)


def measure(store: Store, meter: Meter) -> None:
    """Let `meter` see everything that is read from `store`."""
    if isinstance(store, RemoteStore):
        get_part = store._get_part

        def get_metered_part(key: str, start: int, stop: int, version: str | None = None) -> Part | None:
            part = get_part(key, start, stop, version)
            meter.wait(len(part.data) if part else 0)
            return part

        store._get_part = get_metered_part  # type: ignore[method-assign]
    else:
        get = store.get
        store.get = lambda key: (blob := get(key)) and _MeteredBlob(blob, meter)  # type: ignore[method-assign]


class _MeteredBlob:
    """The bytes of a file, read when they are asked for."""

    is_near = True

    def __init__(self, blob: Blob, meter: Meter) -> None:
        self.size, self.identity = blob.size, blob.identity
        self._blob, self._meter = blob, meter

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        self._meter.wait(sum(memoryview(buffer).nbytes for _, buffer in parts))
        self._blob.read(parts)


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
                index.add(known := catalog.news(_FINGERPRINT))
                index.find("a prompt that is long enough to be looked through for chunks")
                seconds.append(time.perf_counter() - started)
                assert len(known) == num_chunks
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
