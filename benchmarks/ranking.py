"""Rankings of the chunks of cases: how often a supporting chunk is first, how many are among two and four.

    python -m benchmarks.ranking --model FOLDER --cases cases.jsonl [--limit 40]

Cases are those of ``samkv evaluate``. Compares MiniLM, BM25, the engine's match, and the first two reranked with the
match.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from samkv_apps.evaluate.datasets import Case, load_cases
from samkv_apps.evaluate.retrieval import BM25, Embeds, Retriever, minilm
from samkv_rag import SamKVEngine
from samkv_rag.frameworks.ranking import best_of


def main(
    arguments: Sequence[str] | None = None, say: Callable[[str], None] = print, embed: Callable[[], Embeds] = minilm
) -> None:
    """Run the benchmark and print a table."""
    options = _options(arguments)
    engine, embedder = SamKVEngine.from_pretrained(options.model), embed()
    cases = [case for case in load_cases(options.cases) if case.supporting][: options.limit]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for case in cases:
        for name, best_first in _rankings(engine, embedder, case).items():
            found.setdefault(name, []).append(_shares(best_first, case))
    say(f"| {len(cases)} cases | first | among two | among four |\n| --- | --- | --- | --- |")
    for name, shares in found.items():
        say(f"| {name} | {' | '.join(f'{fmean(column):.2f}' for column in zip(*shares, strict=True))} |")


def _rankings(engine: SamKVEngine, embedder: Embeds, case: Case) -> dict[str, list[str]]:
    chunks = case.chunks
    matches = dict(zip(chunks, engine.rank(case.question, chunks), strict=True))
    rankings = {"the engine's match": sorted(chunks, key=matches.__getitem__, reverse=True)}
    for name, retriever in (("MiniLM", Retriever(chunks, embedder)), ("BM25", BM25(chunks))):
        rankings[name] = [chunks[number] for number in retriever.nearest(case.question, len(chunks))]
        reranked = best_of(rankings[name], [matches[chunk] for chunk in rankings[name]], None)
        rankings[f"{name}, reranked"] = [chunk for chunk, _ in reranked]
    return rankings


def _shares(best_first: Sequence[str], case: Case) -> tuple[float, float, float]:
    """Whether the first chunk is supporting, and the shares of the supporting ones among two and four."""
    assert case.supporting is not None
    among = [len(case.supporting & {*best_first[:n]}) for n in (1, 2, 4)]
    return float(among[0]), among[1] / len(case.supporting), among[2] / len(case.supporting)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
