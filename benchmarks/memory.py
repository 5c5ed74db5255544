"""Memory over context lengths: full prefill against the default method, chunk caches on disk.

    python -m benchmarks.memory [--contexts 1k,2k,...,64k] [--full-up-to 8k] [--json FILE]

A model of Qwen2.5-0.5B's shape in bfloat16, on the CPU; its weights and the chunks' cached KV are
random, since bytes are all that counts here. Every figure comes from a fresh process: the bytes of
the KV that decoding reads, and the most resident memory (VmHWM) that the prefill reaches above the
loaded model. Full prefill is run up to ``--full-up-to`` tokens; beyond, its KV bytes are exact
arithmetic and its process memory is not measured. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.synthetic import (
    FINGERPRINT,
    chunk_digest,
    open_chunk,
    parse_token_counts,
    prompt_parts,
    random_chunk,
    random_decoder,
    refuse_long_chunks,
    store_chunks,
)
from samkv_rag import SamKVConfig
from samkv_rag.chunk_cache import chunk_key
from samkv_rag.prefill import METHODS, Clock
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.store import DiskStore

_METHODS = (SamKVConfig().method, "full_prefill")


@dataclass(frozen=True)
class Row:
    """What one method took at one context length."""

    context_tokens: int
    """Tokens of all chunks together."""
    prompt_tokens: int
    method: str
    kv_bytes_resident: int
    kv_bytes_full: int
    peak_process_bytes: int | None
    """Above the loaded model; None: not run."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line as soon as it is known, and write JSON where asked to."""
    options = _options(arguments)
    if options.only is not None:
        print(json.dumps(asdict(measure_here(options))))
        return
    machine, rows = describe_machine(), []
    print(f"{options.shape} shape, random weights, bfloat16; " + ", ".join(f"{k}: {v}" for k, v in machine.items()))
    print(_COLUMNS.format("context", "method", "KV MiB", "of full", "process peak MiB"))
    for row in measure(options):
        print(_line(row), flush=True)
        rows.append(row)
    if options.json is not None:
        setup = {"shape": options.shape, "chunk_tokens": options.chunk_tokens, "full_up_to": options.full_up_to}
        setup["config"] = asdict(SamKVConfig())
        figures = {"machine": machine, "setup": setup, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of every context length, each measured in a process of its own."""
    contexts = parse_token_counts(options.contexts)
    with tempfile.TemporaryDirectory(dir=options.store) as folder:
        _write_chunks(Path(folder), max(contexts) // options.chunk_tokens, options)
        for context in contexts:
            sparse, full = (_measured_in_child(Path(folder), method, context, options) for method in _METHODS)
            assert sparse is not None
            yield sparse
            yield full or _full_by_arithmetic(sparse)


def _write_chunks(folder: Path, num_chunks: int, options: argparse.Namespace) -> None:
    decoder = random_decoder(options.shape, torch.device("meta"))  # shapes alone, no weights
    caches = (random_chunk(decoder, options.chunk_tokens, seed) for seed in range(num_chunks))
    store_chunks(DiskStore(folder), caches)


def _measured_in_child(folder: Path, method: str, context: int, options: argparse.Namespace) -> Row | None:
    """None where full prefill is longer than it is run."""
    if method == "full_prefill" and context > parse_token_counts(options.full_up_to)[0]:
        return None
    command = [sys.executable, "-m", "benchmarks.memory", "--only", method, "--contexts", str(context)]
    command += ["--shape", options.shape, "--chunk-tokens", str(options.chunk_tokens), "--store", str(folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Row(**json.loads(output.splitlines()[-1]))


def _full_by_arithmetic(other: Row) -> Row:
    full_bytes = other.kv_bytes_full
    return Row(other.context_tokens, other.prompt_tokens, "full_prefill", full_bytes, full_bytes, None)


@torch.inference_mode()
def measure_here(options: argparse.Namespace) -> Row:
    """Load the model, then run one prefill and watch this process's memory."""
    (context,) = parse_token_counts(options.contexts)
    decoder, store = random_decoder(options.shape, torch.device("cpu")), DiskStore(options.store)
    parts = prompt_parts(decoder, prefix_tokens=32, question_tokens=32)  # runs the model: warm from here on
    keys = [chunk_key(FINGERPRINT, chunk_digest(number)) for number in range(context // options.chunk_tokens)]
    gc.collect()
    before = _reset_peak()
    layout = parts.layout([open_chunk(store, key) for key in keys], decoder.device)
    buffer = KVBuffer(decoder.num_layers)
    METHODS[options.only].prefill(decoder, layout, SamKVConfig(), buffer, Clock())
    return Row(
        context_tokens=context,
        prompt_tokens=layout.num_tokens,
        method=options.only,
        kv_bytes_resident=buffer.nbytes,
        kv_bytes_full=layout.num_tokens * decoder.kv_bytes_per_token,
        peak_process_bytes=_status_bytes("VmHWM") - before,
    )


def _reset_peak() -> int:
    """Forget the peak that loading the model left behind; return the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")  # 5 sets VmHWM to VmRSS, see proc(5)
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", default="1k,2k,4k,8k,16k,32k,64k", help="tokens of all chunks together")
    parser.add_argument("--full-up-to", default="8k", help="longest context of which a full prefill is run")
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--shape", default="Qwen2.5-0.5B", choices=["Qwen2.5-0.5B", "tiny"])
    parser.add_argument("--store", type=Path, help="folder for the chunk caches; default: the temporary folder")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=_METHODS, help=argparse.SUPPRESS)  # what a child process is told
    options = parser.parse_args(arguments)
    refuse_long_chunks(parser, options)
    return options


_COLUMNS = "{:>8} {:<12} {:>10} {:>8} {:>17}"


def _line(row: Row) -> str:
    peak = "not run" if row.peak_process_bytes is None else f"{row.peak_process_bytes / 2**20:.1f}"
    ratio = f"{row.kv_bytes_resident / row.kv_bytes_full:.3f}"
    return _COLUMNS.format(row.context_tokens, row.method, f"{row.kv_bytes_resident / 2**20:.2f}", ratio, peak)


if __name__ == "__main__":
    main()
