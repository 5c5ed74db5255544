"""Time to first token, resident KV and decoding speed over context lengths, against full prefill.

    python -m benchmarks.contexts [--shape qwen2.5-0.5b] [--contexts 1024,4096] [--json FILE]
    python -m benchmarks.contexts --shape llama-3.1-8b --device cuda --contexts 4096,8192,16384,32768,65536

The model has random weights, and the chunks lie on disk, page cache warm. Methods take turns; figures are
medians of ``--rounds`` after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.machine import describe_machine
from benchmarks.synthetic import SHAPES, byte_tokenizer, chunk_text, prompt, random_model
from samkv_rag import EngineConfig, GenerationMetrics, SamKVEngine
from samkv_rag.prefill import FullPrefill, PrefillMethod, Scout


@dataclass(frozen=True)
class Row:
    """Figures of one method at one context length."""

    context_tokens: int
    method: str
    ttft_s: float
    ttft_ratio: float
    """To full prefill."""
    phase_s: dict[str, float]
    """Where that time goes; only what the host waits for."""
    kv_bytes_resident: int
    kv_ratio: float
    """To full prefill."""
    decode_tokens_per_s: float
    peak_bytes: int | None
    """Most device memory above the weights; CUDA only."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line as soon as it is known, and write JSON where asked to."""
    options = _options(arguments)
    machine, rows = describe_machine(), []
    print(
        f"{options.shape} shape, random weights, {options.dtype}; " + ", ".join(f"{k}: {v}" for k, v in machine.items())
    )
    print(_COLUMNS.format("context", "method", "TTFT ms", "ratio", "KV MiB", "ratio", "tokens/s", "peak MiB"))
    for row in measure(options):
        print(_line(row), flush=True)
        rows.append(asdict(row))
    if options.json is not None:
        setup = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(json.dumps({"machine": machine, "setup": setup, "rows": rows}, indent=2) + "\n")


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Yield the rows of every context length."""
    model = random_model(options.shape, options.device, getattr(torch, options.dtype))
    contexts = [int(part) for part in options.contexts.split(",")]
    texts = [chunk_text(number, options.chunk_tokens) for number in range(max(contexts) // options.chunk_tokens)]
    with (
        tempfile.TemporaryDirectory() as folder,
        SamKVEngine.from_pretrained(
            model, tokenizer=byte_tokenizer(), store=folder, config=EngineConfig(storage=options.storage)
        ) as engine,
    ):
        engine.add_chunks(texts)
        for context in contexts:
            yield from _rows(engine, texts[: context // options.chunk_tokens], context, options)


def _rows(engine: SamKVEngine, texts: list[str], context: int, options: argparse.Namespace) -> Iterator[Row]:
    methods: list[PrefillMethod] = [FullPrefill(), Scout(min_chunk_tokens=0)]
    runs: dict[str, list[tuple[GenerationMetrics, int | None]]] = {method.name: [] for method in methods}
    for round_number in range(options.rounds + 1):
        for method in methods:
            run = _run(engine, texts, method, options.decode_tokens)
            if round_number:  # the first warms up
                runs[method.name].append(run)
    full_s = median(metrics.ttft_s for metrics, _ in runs["full_prefill"])
    for name, measured in runs.items():
        metrics, peak_bytes = measured[-1]
        ttft_s = median(m.ttft_s for m, _ in measured)
        yield Row(
            context_tokens=context,
            method=name,
            ttft_s=ttft_s,
            ttft_ratio=ttft_s / full_s,
            phase_s={phase: median(m.phase_s[phase] for m, _ in measured) for phase in metrics.phase_s},
            kv_bytes_resident=metrics.kv_bytes_resident,
            kv_ratio=metrics.kv_bytes_resident / metrics.kv_bytes_full,
            decode_tokens_per_s=median(m.decode_tokens_per_s for m, _ in measured),
            peak_bytes=peak_bytes,
        )


def _run(
    engine: SamKVEngine, texts: list[str], method: PrefillMethod, decode_tokens: int
) -> tuple[GenerationMetrics, int | None]:
    on_cuda = engine.decoder.device.type == "cuda"
    before = 0
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    metrics = engine.generate(prompt(texts), method=method, max_new_tokens=decode_tokens).metrics
    return metrics, torch.cuda.max_memory_allocated() - before if on_cuda else None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--contexts", default="1024,2048,4096,8192", help="tokens of all chunks together")
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--storage", default="full", choices=["full", "index"], help="what is kept of a chunk")
    parser.add_argument("--decode-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.chunk_tokens > min(int(part) for part in options.contexts.split(",")):
        parser.error(f"--chunk-tokens is {options.chunk_tokens}, more than the shortest of --contexts; give fewer")
    return options


_COLUMNS = "{:>8} {:<13} {:>9} {:>6} {:>8} {:>6} {:>9} {:>9}"


def _line(row: Row) -> str:
    return _COLUMNS.format(
        row.context_tokens,
        row.method,
        f"{row.ttft_s * 1e3:.0f}",
        f"{row.ttft_ratio:.3f}",
        f"{row.kv_bytes_resident / 2**20:.1f}",
        f"{row.kv_ratio:.3f}",
        f"{row.decode_tokens_per_s:.1f}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}",
    )


if __name__ == "__main__":
    main()
