"""The demo's output, on a terminal or in a file: answers while they are generated, then figures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from samkv_apps.demo.pipeline import Ingested
from samkv_apps.demo.report import Comparison, DemoReport, Source

_INDENT, _LABEL_WIDTH = 5, 14
_HOW_MEASURED = (
    "Both methods answered the same prompts in this process, after a warm-up question that is not counted. "
    "An answer is right if it contains the expected words. The template and the order are the framework's defaults."
)


class Screen:
    """Results go to standard output; progress to standard error, on a terminal only."""

    def __init__(self) -> None:
        self._out = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        self._errors.quiet = not self._errors.is_terminal

    def progress(self, message: str) -> None:
        """Show what the demo is doing."""
        self._errors.print(message, style="dim", markup=False)

    def ingested(self, ingested: Ingested, seconds: float, folder: Path) -> None:
        """Show how many chunks were computed and how many reused."""
        if ingested.added:
            how = f"{ingested.added} chunks ingested in {seconds:.1f} s, {ingested.reused} reused"
        else:
            how = f"{ingested.reused} chunks reused from an earlier run, none computed"
        self._out.print(f"{how} ({folder})\n", markup=False, soft_wrap=True)

    def question(self, number: int, count: int, question: str) -> None:
        """Show the question."""
        self._out.print(f"[bold]{number}/{count}[/bold]  ", end="")
        self._out.print(question, style="bold", markup=False)

    def answer(self, label: str, pieces: Iterable[str]) -> str:
        """Show an answer while it is being generated, and return it."""
        self._label(label)
        text = ""
        for piece in pieces:
            shown = piece if text else piece.lstrip()
            self._out.print(shown.replace("\n", " "), end="", markup=False, soft_wrap=True)
            self._out.file.flush()
            text += piece
        self._out.print()
        return text.strip()

    def comparison(self, comparison: Comparison) -> None:
        """Show sources and figures of one question."""
        for i, line in enumerate(_wrapped(comparison.sources, self._out.width - _INDENT - _LABEL_WIDTH)):
            self._label("" if i else "sources")
            self._out.print(line, markup=False)
        table = _table("", "first token", "sequence ratio", "KV in memory", "chunks hit")
        for label, metrics in (("SamKV", comparison.samkv.metrics), ("full prefill", comparison.full.metrics)):
            hits = f"{metrics.chunks_hit} of {metrics.chunks_total}" if metrics.tokens_reused else "not used"
            ratio, resident = f"{metrics.sequence_ratio:.3f}", _megabytes(metrics.kv_bytes_resident)
            table.add_row(label, f"{metrics.ttft_s:.2f} s", ratio, resident, hits)
        self._out.print(table)

    def summary(self, report: DemoReport) -> None:
        """Show the medians over all questions."""
        table = _table(f"median of {len(report.comparisons)}", "SamKV", "full prefill", "ratio")
        ttft, kv = report.medians(lambda m: m.ttft_s), report.medians(lambda m: m.kv_bytes_resident)
        table.add_row("first token", f"{ttft[0]:.2f} s", f"{ttft[1]:.2f} s", f"{report.ttft_ratio_median:.2f}")
        table.add_row("KV in memory", _megabytes(kv[0]), _megabytes(kv[1]), f"{kv[0] / kv[1]:.2f}")
        table.add_row("right answers", *map(str, report.num_right()))
        self._out.print(table)
        self._out.print(_HOW_MEASURED, markup=False)
        self._out.print(f"Chunk KV on disk: {_megabytes(report.store_bytes)}.")

    def _label(self, label: str) -> None:
        self._out.print(f"{'':<{_INDENT}}{label:<{_LABEL_WIDTH}}", end="", style="cyan")


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="dim")
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", no_wrap=True)
    return table


def _wrapped(sources: Iterable[Source], width: int) -> list[str]:
    """Names and scores, wrapped between sources only."""
    glue = "\N{NO-BREAK SPACE}"
    entries = (f"{source.file.removesuffix('.md')}{glue}{source.score:.2f}" for source in sources)
    lines = textwrap.wrap(", ".join(entries), max(width, 40), break_on_hyphens=False)
    return [line.replace(glue, " ") for line in lines]


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
