"""The engine's figures on SmolLM2-135M-Instruct and the demo's corpus.

    python -m benchmarks.engine [--rounds N] [--json FILE]

Timings are compared within one run, alternating, as ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import describe_machine
from samkv_rag import SamKVConfig, SamKVEngine
from samkv_apps.demo.corpus import sections
from samkv_apps.models import language_model
from samkv_rag.prefill import METHODS, Clock
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prompt import ChunkIndex, describe

QUESTION = "Who was the engineer of the tower at Skerrow Light?"
VARIANTS: dict[str, dict[str, Any]] = {
    "full_prefill": {"method": "full_prefill"},
    "scout 0.15 (default)": {},
    "scout 0.15, view all": {"recompute_view": "all"},
    "scout 0.15, view chunk": {"recompute_view": "chunk"},
    "scout 0.15, from the bottom": {"update": "fusion", "fusion_theta": 1.0},
    "naive_reuse": {"method": "naive_reuse"},
}


def main() -> None:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chunks = [section.text for section in sections()]
    figures = {
        "machine": describe_machine(),
        "import_s": measure_import(),
        "recognition": measure_recognition(),
        "exactness": measure_exactness(chunks[:8]),
        "ingestion": measure_ingestion(chunks),
        "ttft": measure_ttft(chunks[:8], arguments.rounds),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


def measure_import() -> float:
    """Seconds of ``import samkv_rag`` in a fresh process, median of 5."""
    code = "import time; t = time.perf_counter(); import samkv_rag; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    return median(float(run.stdout) for run in runs)


def measure_recognition(num_chunks: int = 100_000, prompt_chars: int = 32_000) -> dict[str, float]:
    """Milliseconds to find 20 chunks among ``num_chunks`` in a prompt; all chunks different, or begun alike."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices(string.ascii_lowercase, k=chooser.randint(2, 9))) for _ in range(5000)]
    figures = {}
    for name, header in (("different", ""), ("begun alike", "Company handbook, page header, for internal use. ")):
        texts = [header + " ".join(chooser.choices(words, k=chooser.randint(150, 300))) for _ in range(num_chunks)]
        index = ChunkIndex()
        index.add(map(describe, texts))
        prompt = "\n\n".join(texts[:: num_chunks // 18])[:prompt_chars].ljust(prompt_chars)
        figures[f"{name}, ms"] = 1e3 * median(_timed(lambda index=index, prompt=prompt: index.find(prompt)))
        figures[f"{name}, found"] = len(index.find(prompt))
    return figures


def measure_exactness(chunks: list[str]) -> dict[str, float]:
    """Largest difference of logits between keep-all plus recompute-all and full prefill, in float32."""
    engine = _engine(":memory:", dtype="float32")
    engine.add_chunks(chunks)
    reference = _first_logits(engine, chunks, method="full_prefill")
    return {
        f"view {view}": float(
            (_first_logits(engine, chunks, sequence_ratio=1.0, recompute_view=view) - reference).abs().max()
        )
        for view in ("all", "chunk", "kept")
    }


def measure_ingestion(chunks: list[str]) -> dict[str, float]:
    """Seconds of a first ingestion to disk and of the same again."""
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(folder)
        first, again = engine.add_chunks(chunks), engine.add_chunks(chunks)
    return {
        "chunks": first.num_added,
        "tokens": first.num_tokens,
        "first_s": first.elapsed_s,
        "again_s": again.elapsed_s,
        "again_to_first": again.elapsed_s / first.elapsed_s,
    }


def measure_ttft(chunks: list[str], rounds: int) -> dict[str, Any]:
    """Median time to first token of every variant, caches on disk, page cache warm, and ratios to full prefill."""
    with tempfile.TemporaryDirectory() as folder:
        engine = _engine(folder)
        engine.add_chunks(chunks)
        runs: dict[str, list[Any]] = {name: [] for name in VARIANTS}
        for round_number in range(rounds + 1):
            for name, options in VARIANTS.items():
                metrics = engine.generate(_messages(chunks), max_new_tokens=1, **options).metrics
                if round_number:  # the first warms up
                    runs[name].append(metrics)
    full = median(metrics.ttft_s for metrics in runs["full_prefill"])
    return {name: _summary(metrics, full) for name, metrics in runs.items()}


def _summary(metrics: list[Any], full_s: float) -> dict[str, Any]:
    ttft_s = median(m.ttft_s for m in metrics)
    return {
        "ttft_s": round(ttft_s, 4),
        "ttft_ratio": round(ttft_s / full_s, 4),
        "chunk_tokens": metrics[0].chunk_tokens,
        "sequence_ratio": round(metrics[0].sequence_ratio, 4),
        "kv_resident_ratio": round(metrics[0].kv_bytes_resident / metrics[0].kv_bytes_full, 4),
        "phase_s": {name: round(median(m.phase_s[name] for m in metrics), 4) for name in metrics[0].phase_s},
    }


def _engine(store: str, dtype: str | None = None) -> SamKVEngine:
    return SamKVEngine.from_pretrained(language_model(say=print), store=store, dtype=dtype, config=SamKVConfig())


def _messages(chunks: list[str]) -> list[dict[str, str]]:
    text = "Answer from the passages.\n\n" + "\n\n".join(chunks) + f"\n\nQuestion: {QUESTION}\nAnswer briefly."
    return [{"role": "user", "content": text}]


def _first_logits(engine: SamKVEngine, chunks: list[str], **options: Any) -> torch.Tensor:
    """Logits ``[vocab]`` of the first answer token."""
    config = engine.config.with_options(**options)
    prompt = engine._assembler.read(engine.apply_chat_template(_messages(chunks)))
    reads_cache = METHODS[config.method].reads_cache
    layout = engine._assembler.with_cache(prompt) if reads_cache else engine._assembler.without_cache(prompt)
    with torch.inference_mode():
        buffer = KVBuffer(engine.decoder.num_layers)
        prefilled = METHODS[config.method].prefill(engine.decoder, layout, config, buffer, Clock())
        return engine.decoder.logits(prefilled.hidden)[0, -1]


def _timed(action: Any, rounds: int = 15) -> list[float]:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
