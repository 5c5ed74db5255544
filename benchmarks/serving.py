"""Requests at once: decoding together against one after the other, and a short request beside a long one.

    python -m benchmarks.serving [--model FOLDER] [--requests 8] [--chunk-tokens 6000] [--json FILE]

Decoding is measured alone, after all prefills. Answers are compared token by token.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import describe_machine
from samkv_apps.models import language_model
from samkv_rag import SamKVEngine
from samkv_rag.prefill import FullPrefill
from samkv_rag.runtime.sequence import Sequence as RunningSequence
from samkv_rag.runtime.step import step

SUBJECTS = ["tower", "lamp", "boat", "well", "garden", "signal", "stair", "wall", "gate", "mast"]
_SHORT = "Question: what colour is grass?\nAnswer:"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--dtype", help="default: bfloat16 where the processor computes in it, else float32")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--chunk-tokens", type=int, default=6000, help="of each request")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    model = options.model or str(language_model(say=print))
    with SamKVEngine.from_pretrained(model, dtype=options.dtype) as engine:
        figures: dict[str, Any] = {
            "machine": describe_machine(),
            "setup": {
                "model": Path(model).name,
                "dtype": str(engine.decoder.dtype),
                "requests": options.requests,
                "chunk_tokens": options.chunk_tokens,
                "new_tokens": options.new_tokens,
                "rounds": options.rounds,
            },
        }
        for name, measure in (("decoding", measure_decoding), ("short_beside_long", measure_short_beside_long)):
            figures[name] = measure(engine, options)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure_decoding(engine: SamKVEngine, options: argparse.Namespace) -> dict[str, Any]:
    """Measure tokens per second of prefilled sequences, decoded one after the other and in one batch."""
    prompts = [_prompt(engine, number, options.chunk_tokens) for number in range(options.requests)]
    alone_s, together_s, num_equal = [], [], 0
    for _ in range(options.rounds):
        alone = [_prefilled(engine, prompt, options.new_tokens) for prompt in prompts]
        together = [_prefilled(engine, prompt, options.new_tokens) for prompt in prompts]
        alone_s.append(sum(_decode(engine, [sequence]) for sequence in alone))
        together_s.append(_decode(engine, together))
        num_tokens = sum(len(sequence.token_ids) - 1 for sequence in alone)
        num_equal = sum(one.token_ids == other.token_ids for one, other in zip(alone, together, strict=True))
    return {
        "alone_tokens_per_s": num_tokens / median(alone_s),
        "together_tokens_per_s": num_tokens / median(together_s),
        "ratio": median(alone_s) / median(together_s),
        "equal_answers": num_equal,
    }


def measure_short_beside_long(engine: SamKVEngine, options: argparse.Namespace) -> dict[str, float]:
    """Measure seconds to a short request's first token: alone, beside a long full prefill, and waiting for it."""
    long = _prompt(engine, 99, options.chunk_tokens)
    alone, long_alone, beside = [], [], []
    for _ in range(options.rounds):
        alone.append(engine.generate(_SHORT, max_new_tokens=1).metrics.ttft_s)
        long_alone.append(engine.generate(long, method=FullPrefill(), max_new_tokens=1).metrics.ttft_s)
        thread = threading.Thread(
            target=engine.generate, args=(long,), kwargs={"method": FullPrefill(), "max_new_tokens": 1}
        )
        thread.start()
        time.sleep(0.1 * long_alone[-1])  # into the prefill
        beside.append(engine.generate(_SHORT, max_new_tokens=1).metrics.ttft_s)
        thread.join()
    waiting_s = 0.9 * median(long_alone) + median(alone)
    return {
        "alone_s": median(alone),
        "long_prefill_s": median(long_alone),
        "waiting_s": waiting_s,
        "beside_s": median(beside),
        "ratio_to_waiting": median(beside) / waiting_s,
    }


def _prompt(engine: SamKVEngine, number: int, chunk_tokens: int) -> str:
    """Ingest chunks of about ``chunk_tokens`` tokens, and return a prompt over them."""
    texts: list[str] = []
    while sum(map(engine.count_tokens, texts)) < chunk_tokens:
        subject = SUBJECTS[len(texts) % len(SUBJECTS)]
        lines = [
            f"In year {1800 + i}, entry {number}-{len(texts)}, the {subject} was mended {i} times." for i in range(20)
        ]
        texts.append(" ".join(lines))
    engine.add_chunks(texts, show_progress=False)
    return "Use these passages.\n\n" + "\n\n".join(texts) + "\n\nQuestion: tell the story of the tower.\nAnswer: It was"


@torch.inference_mode()
def _prefilled(engine: SamKVEngine, prompt: str, new_tokens: int) -> RunningSequence:
    sequence = engine._sequence(prompt, {"max_new_tokens": new_tokens})
    sequence.deliver = lambda delivery: None
    sequence.read = engine._read(sequence)
    engine._prefill(sequence)
    return sequence


@torch.inference_mode()
def _decode(engine: SamKVEngine, sequences: list[RunningSequence]) -> float:
    """Seconds until all have ended."""
    started = time.perf_counter()
    while running := [sequence for sequence in sequences if not sequence.finish_reason]:
        step(engine.decoder, running)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
