"""What each part of the methods ``samkv`` and ``scout`` is worth: one part changed at a time.

    python -m benchmarks.ablation --model PATH --data FILE [FILE ...] --limit N --output-dir DIR

Every variant is an evaluation (``samkv evaluate``) in a folder of its own under ``--output-dir``, on the
same cases and the same chunk store; full prefill answers once, for all of them. An interrupted run is
continued by the same command. Prints and writes ``ablation.md``, and ``ablation.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from samkv_rag import SamKVConfig
from samkv_apps.evaluate import EvaluationMetrics, EvaluationOptions, RunMetrics, evaluate

_REFERENCE = "full_prefill"
_METHODS = ("samkv", "scout")
# The paper recomputes all layers, in view of what is kept; so its updates differ in nothing else.
_PAPER: dict[str, Any] = {"recompute_view": "kept", "resume_layer": 0}


@dataclass(frozen=True)
class Variant:
    """A method with some options other than its own."""

    name: str
    method: str
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Options of SamKVConfig."""
        return (_PAPER if self.method == "samkv" else {}) | self.changed

    @property
    def folder(self) -> str:
        """Name of its folder, of what it changes."""
        settings = (f"{name}={value}" for name, value in self.changed.items())
        return ",".join([self.method, *settings])


def _samkv(name: str, **changed: Any) -> Variant:
    return Variant(name, "samkv", changed)


def _scout(name: str, **changed: Any) -> Variant:
    return Variant(name, "scout", changed)


VARIANTS = (
    _samkv("all parts"),
    _samkv("no personalisation", personalization=False),
    _samkv("fixed budget instead of the dynamic share", dynamic_share=False),
    _samkv("no recomputation", recompute=False),
    _samkv("fusion, θ = 0.9, instead of overwrite", update="fusion", fusion_theta=0.9),
    _samkv("fusion, θ = 0.5, instead of overwrite", update="fusion", fusion_theta=0.5),
    *(_samkv(f"stable layers: last {n}", stable_layers=n) for n in (1, 4, 8)),
    _scout("all parts"),
    _scout("no recomputation", recompute=False),
    *(_scout(f"recomputed in view of {view}", recompute_view=view) for view in ("kept", "chunk", "all")),
    _scout("recomputed from layer 0", resume_layer=0),
    *(_scout(f"spans of {n} tokens", span_tokens=n) for n in (4, 8, 16, 32)),
    *(_scout(f"anchors: first {n} tokens", initial_tokens=n) for n in (0, 4, 8)),
)


@dataclass(frozen=True)
class Row:
    """One variant on one data set."""

    name: str
    options: dict[str, Any]
    figures: RunMetrics


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or continue the ablation, print its tables and write them."""
    options = _options(arguments)
    rows = list(run(options, [variant for variant in VARIANTS if variant.method in options.methods]))
    table = _as_tables(rows)
    print(table, end="")
    (options.output_dir / "ablation.md").write_text(f"# Ablation on {options.model}\n\n{table}")
    figures = {"machine": describe_machine(), "model": options.model, "rows": [asdict(row) for row in rows]}
    (options.output_dir / "ablation.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def run(options: argparse.Namespace, variants: Iterable[Variant]) -> Iterator[Row]:
    """Yield the rows of full prefill and of every variant; equal configurations are run once."""
    reference = options.output_dir / _REFERENCE
    yield from _rows(Variant("", _REFERENCE), evaluate(_evaluation(options, Variant("", _REFERENCE), None)))
    known: dict[SamKVConfig, EvaluationMetrics] = {}
    for variant in variants:
        config = SamKVConfig().with_options(method=variant.method, **variant.options)
        if config not in known:
            known[config] = evaluate(_evaluation(options, variant, reference))
        yield from _rows(variant, known[config])


def _evaluation(options: argparse.Namespace, variant: Variant, reference: Path | None) -> EvaluationOptions:
    return EvaluationOptions(
        model=options.model,
        data=options.data,
        output_dir=options.output_dir / variant.folder,
        methods=[variant.method],
        sequence_ratios=[options.sequence_ratio],
        limit=options.limit,
        seed=options.seed,
        # No variant is stored otherwise than the default: none changes anchors or blocks of samkv.
        store=options.store or options.output_dir / "kv",
        reference=reference,
        dtype=options.dtype,
        engine_options=variant.options,
    )


def _rows(variant: Variant, metrics: EvaluationMetrics) -> Iterator[Row]:
    return (Row(variant.name, variant.options, figures) for figures in metrics.runs if figures.method == variant.method)


_HEADER = ("method", "variant", "n", "F1", "gold NLL", "F1 − full, 95%", "NLL − full, 95%", "kept", "recomputed")


def _as_tables(rows: Sequence[Row]) -> str:
    """A table in Markdown for each data set."""
    tables = []
    for data in dict.fromkeys(row.figures.data for row in rows):
        lines = [_HEADER, ("---",) * len(_HEADER), *(_cells(row) for row in rows if row.figures.data == data)]
        tables.append(f"## {data}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return "\n".join(tables)


def _cells(row: Row) -> tuple[str, ...]:
    figures = row.figures
    return (
        figures.method,
        row.name,
        str(figures.n),
        f"{figures.f1:.3f}",
        f"{figures.gold_nll:.3f}",
        _difference(figures.f1 - figures.f1_full, figures.f1_diff_ci95),
        _difference(figures.gold_nll - figures.gold_nll_full, figures.gold_nll_diff_ci95),
        f"{figures.sequence_ratio_mean:.3f}",
        f"{figures.recompute_ratio_mean:.3f}",
    )


def _difference(mean: float, interval: tuple[float, float]) -> str:
    return f"{mean:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id, folder or .gguf file")
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="FILE", help="case files")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--limit", type=int, help="cases of each file; default: all")
    parser.add_argument("--seed", type=int, help="draws a limit's cases; default: the first")
    parser.add_argument("--sequence-ratio", type=float, default=SamKVConfig().sequence_ratio)
    parser.add_argument("--methods", nargs="+", choices=_METHODS, default=_METHODS, help="whose parts; default: both")
    parser.add_argument("--store", type=Path, help="folder for chunk KV; default: kv in --output-dir")
    parser.add_argument("--dtype", help="such as bfloat16; default: by processor")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
