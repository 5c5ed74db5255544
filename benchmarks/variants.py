"""Compares options of `scout`, such as the shares retained and recomputed, by the likelihood of the answer.

    python -m benchmarks.variants --model FOLDER --data hotpotqa.jsonl musique.jsonl [--limit 40] [--json FILE]
    python -m benchmarks.variants ... --variant '{"match_power": 0}' --variant '{"sequence_ratio": 0.3}'

Every variant reads the same chunks, in a random order, and differences are paired. The negative log-likelihood of
the reference answer separates similar variants better than the words of answers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from benchmarks.machine import describe_machine
from samkv_apps.evaluate.datasets import Case, load_cases
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.retrieval import in_order
from samkv_apps.evaluate.statistics import bootstrap_interval
from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.prefill import FullPrefill, PrefillMethod, Scout

FRONTIER = [
    {"sequence_ratio": kept, "recompute_ratio": recomputed}
    for kept in (0.1, 0.15, 0.3)
    for recomputed in (0.05, 0.1, 0.15)
    if recomputed <= kept
]


@dataclass(frozen=True)
class Row:
    """A variant's negative log-likelihood per token of the reference answers."""

    variant: str
    n: int
    gold_nll: float
    minus_full: float
    minus_scout: float
    minus_scout_ci95: tuple[float, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line a variant, and write JSON where asked to."""
    options = _options(arguments)
    variants = [json.loads(variant) for variant in options.variant] or FRONTIER
    methods: dict[str, PrefillMethod] = {"full_prefill": FullPrefill(), "scout": Scout(min_chunk_tokens=0)}
    methods |= {json.dumps(variant): Scout(min_chunk_tokens=0, **variant) for variant in variants}
    cases = list(chain.from_iterable(zip(*(load_cases(file, options.limit) for file in options.data), strict=False)))
    nlls: dict[str, list[float]] = defaultdict(list)
    config = EngineConfig(**options.config)
    with SamKVEngine.from_pretrained(options.model, dtype=options.dtype, config=config) as engine:
        for case in cases:
            for name, nll in measure(engine, case, methods).items():
                nlls[name].append(nll)
    rows = [compared(name, values, nlls) for name, values in nlls.items()]
    for row in rows:
        low, high = row.minus_scout_ci95
        print(f"{row.gold_nll:7.3f} {row.minus_scout:+7.3f} ({low:+.3f} to {high:+.3f})  {row.variant}")
    if options.json is not None:
        setup = {"model": Path(options.model).name, "config": options.config}
        setup |= {"data": [file.name for file in options.data], "cases": len(cases)}
        options.json.write_text(
            json.dumps({"machine": describe_machine(), "setup": setup, "rows": [asdict(row) for row in rows]}, indent=2)
            + "\n"
        )


def measure(engine: SamKVEngine, case: Case, methods: dict[str, PrefillMethod]) -> dict[str, float]:
    """Return each method's negative log-likelihood per token of the case's first answer."""
    texts = in_order(case.chunks, "random", case.case_id)
    engine.add_chunks(texts)
    messages, answer = build_messages(case.question, texts), case.answers[0]
    scored = {
        name: engine.generate_scored(messages, answer, method=method, max_new_tokens=1)
        for name, method in methods.items()
    }
    engine.remove_chunks(texts)
    return {name: result.reference_nll or 0.0 for name, result in scored.items()}


def compared(name: str, own: list[float], nlls: dict[str, list[float]]) -> Row:
    """Return a variant's mean, and its differences to full prefill and to the default on the same cases."""
    minus_scout = [a - b for a, b in zip(own, nlls["scout"], strict=True)]
    return Row(
        variant=name,
        n=len(own),
        gold_nll=fmean(own),
        minus_full=fmean(own) - fmean(nlls["full_prefill"]),
        minus_scout=fmean(minus_scout),
        minus_scout_ci95=bootstrap_interval(minus_scout, seed=0),
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, help="cases of each file; default all")
    parser.add_argument("--dtype", help="default by processor")
    parser.add_argument("--variant", action="append", default=[], help="options of scout as JSON; default the frontier")
    parser.add_argument("--config", type=json.loads, default={}, help="options of EngineConfig as JSON")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
