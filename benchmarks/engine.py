"""The engine's figures on a small model and the demo's corpus: import, recognition, exactness, ingestion, TTFT.

    python -m benchmarks.engine [--model FOLDER] [--rounds N] [--json FILE]

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
from samkv_apps.demo.corpus import sections
from samkv_apps.models import language_model
from samkv_rag import SamKVEngine
from samkv_rag.ingestion.recognition import ChunkIndex, describe
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Clock, FullPrefill, NaiveReuse, PrefillContext, PrefillMethod, Scout

QUESTION = "Who was the engineer of the tower at Skerrow Light?"
METHODS: dict[str, PrefillMethod] = {
    "full_prefill": FullPrefill(),
    "scout (default)": Scout(),
    "scout, view all": Scout(recompute_view="all"),
    "scout, view chunk": Scout(recompute_view="chunk"),
    "naive_reuse": NaiveReuse(),
}


def main() -> None:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = arguments.model or str(language_model(say=print))
    chunks = [section.text for section in sections()]
    figures = {
        "machine": describe_machine(),
        "import_s": measure_import(),
        "recognition": measure_recognition(),
        "exactness": measure_exactness(model, chunks[:8]),
        "ingestion": measure_ingestion(model, chunks),
        "ttft": measure_ttft(model, chunks[:8], arguments.rounds),
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
    """Milliseconds to find 18 chunks among ``num_chunks`` in a prompt; all chunks different, or begun alike."""
    chooser = random.Random(0)
    words = ["".join(chooser.choices(string.ascii_lowercase, k=chooser.randint(2, 9))) for _ in range(5000)]
    figures = {}
    for name, header in (("different", ""), ("begun alike", "Company handbook, page header, for internal use. ")):
        texts = [header + " ".join(chooser.choices(words, k=chooser.randint(150, 300))) for _ in range(num_chunks)]
        index = ChunkIndex()
        index.add(map(describe, texts))
        prompt = "\n\n".join(texts[:: num_chunks // 18])[:prompt_chars].ljust(prompt_chars)
        seconds = []
        for _ in range(15):
            started = time.perf_counter()
            index.find(prompt)
            seconds.append(time.perf_counter() - started)
        figures[f"{name}, ms"] = 1e3 * median(seconds)
        figures[f"{name}, found"] = len(index.find(prompt))
    return figures


def measure_exactness(model: str, chunks: list[str]) -> dict[str, float]:
    """Largest difference of logits between retain-all plus recompute-all and full prefill, in float32."""
    with SamKVEngine.from_pretrained(model, dtype="float32") as engine:
        engine.add_chunks(chunks)
        reference = _first_logits(engine, chunks, FullPrefill())
        views = ("all", "chunk", "retained")
        return {
            f"view {view}": float((_first_logits(engine, chunks, method) - reference).abs().max())
            for view, method in ((view, Scout(sequence_ratio=1.0, recompute_view=view)) for view in views)  # type: ignore[arg-type]
        }


def measure_ingestion(model: str, chunks: list[str]) -> dict[str, float]:
    """Seconds of a first ingestion to disk and of the same again."""
    with tempfile.TemporaryDirectory() as folder, SamKVEngine.from_pretrained(model, store=folder) as engine:
        first, again = engine.add_chunks(chunks), engine.add_chunks(chunks)
    return {
        "chunks": first.num_added,
        "tokens": first.num_tokens,
        "first_s": first.elapsed_s,
        "again_s": again.elapsed_s,
        "again_to_first": again.elapsed_s / first.elapsed_s,
    }


def measure_ttft(model: str, chunks: list[str], rounds: int) -> dict[str, Any]:
    """Median time to first token of every method, caches on disk, page cache warm, and ratios to full prefill."""
    runs: dict[str, list[Any]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder, SamKVEngine.from_pretrained(model, store=folder) as engine:
        engine.add_chunks(chunks)
        for round_number in range(rounds + 1):
            for name, method in METHODS.items():
                metrics = engine.generate(_messages(chunks), method=method, max_new_tokens=1).metrics
                if round_number:  # the first warms up
                    runs[name].append(metrics)
    full_s = median(metrics.ttft_s for metrics in runs["full_prefill"])
    return {name: _summary(metrics, full_s) for name, metrics in runs.items()}


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


def _messages(chunks: list[str]) -> list[dict[str, str]]:
    text = "Answer from the passages.\n\n" + "\n\n".join(chunks) + f"\n\nQuestion: {QUESTION}\nAnswer briefly."
    return [{"role": "user", "content": text}]


@torch.inference_mode()
def _first_logits(engine: SamKVEngine, chunks: list[str], method: PrefillMethod) -> torch.Tensor:
    """Logits ``[vocab]`` of the first answer token."""
    assembler = engine._assembler
    prompt = assembler.split(engine.apply_chat_template(_messages(chunks)))
    layout = assembler.with_cache(prompt) if method.needs else assembler.without_cache(prompt)
    context = PrefillContext(engine.decoder, layout, KVBuffer(engine.decoder.num_layers), engine._spec, Clock())
    return engine.decoder.logits(method.prefill(context).hidden)[0, -1]


if __name__ == "__main__":
    main()
