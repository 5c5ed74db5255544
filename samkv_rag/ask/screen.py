"""What `samkv ask` shows: the answer as it comes, its sources, what it cost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from samkv_rag.ask.library import Update
    from samkv_rag.ask.report import Source
    from samkv_rag.results import GenerationMetrics

_SPEED_OF_LAST_S = 600.0  # steps come in batches, some seconds apart
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Screen:
    """Results go to standard output, unless ``quiet``; progress to standard error, on a terminal only."""

    def __init__(self, quiet: bool = False) -> None:
        self._out = Console(highlight=False, quiet=quiet, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self._shows_progress = self._errors.is_terminal
        self._has_begun = False

    # -- on the way --------------------------------------------------------------------------------

    def status(self, message: str) -> None:
        """Say what is being done."""
        if self._shows_progress:
            self._errors.print(printable(message), style="dim", markup=False)

    def warn(self, message: str) -> None:
        """Say what was left out, terminal or not."""
        self._errors.print("samkv: warning: ", style="yellow", end="")
        self._errors.print(printable(message), markup=False)

    @contextmanager
    def bar(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """A bar of ``total`` steps, gone when they are done; yield a function that takes how many more are."""
        columns = (TextColumn("{task.description}", style="dim"), BarColumn(), MofNCompleteColumn())
        with Progress(
            *columns,
            TimeRemainingColumn(),
            console=self._errors,
            transient=True,
            disable=not (total and self._shows_progress),
            speed_estimate_period=_SPEED_OF_LAST_S,
        ) as progress:
            task = progress.add_task(what, total=total)
            yield lambda steps: progress.advance(task, steps)

    def updated(self, update: Update) -> None:
        """Say what the files brought."""
        new = f"{update.num_computed:,} of them computed in {update.elapsed_s:.1f} s" if update.num_computed else ""
        removed = f"{update.num_removed:,} old ones removed" if update.num_removed else ""
        for problem in update.problems:
            self.warn(problem)
        passages = f"{_count(update.num_files, 'file')}, {_count(update.num_passages, 'passage')}"
        self.status("; ".join(filter(None, [passages, new or "none computed", removed])))

    # -- results -----------------------------------------------------------------------------------

    def answer(self, piece: str) -> None:
        """Show a piece of the answer."""
        shown = piece if self._has_begun else piece.lstrip()
        self._has_begun = self._has_begun or bool(shown)
        self._out.print(printable(shown), end="", style="bold", markup=False)
        self._out.file.flush()

    def answer_ends(self, cut: bool) -> None:
        """Leave the answer's line; ``cut`` where it would have gone on."""
        self._out.print(" … (cut off by --max-tokens)\n" if cut else "\n", style="dim")

    def sources(self, sources: Sequence[Source]) -> None:
        """Show what the answer was read from, best first."""
        self._out.print(f"score  {'tokens kept':<12}  source", style="dim")
        for source in sources:
            share = f"{source.num_kept / source.num_tokens:4.0%} of {source.num_tokens:,}"
            self._out.print(f"{source.score:5.2f}  {share:<12}  ", style="cyan", end="")
            self._out.print(printable(source.name), markup=False)

    def figures(self, metrics: GenerationMetrics) -> None:
        """Show in a line what the answer cost."""
        kept = f"{metrics.sequence_ratio:.1%} of {metrics.chunk_tokens:,} passage tokens kept"
        if metrics.fallback_reason:
            kept = f"all {metrics.chunk_tokens:,} passage tokens read ({metrics.fallback_reason})"
        memory = f"KV {metrics.kv_bytes_resident / 1e6:.1f} MB"
        if metrics.kv_bytes_resident < metrics.kv_bytes_full:
            memory += f" instead of {metrics.kv_bytes_full / 1e6:.1f} MB"
        self._out.print(f"\nfirst token after {metrics.ttft_s:.2f} s · {kept} · {memory}", style="dim", markup=False)


def printable(text: str) -> str:
    """``text`` without what would move a terminal's cursor or change its colours; line breaks stay."""
    return _CONTROL.sub(" ", text)


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
