"""PNG plots of an evaluation. Drawing needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from samkv_apps.evaluate.options import REFERENCE, WITHOUT_RATIO, Task
from samkv_apps.evaluate.records import Prediction
from samkv_apps.evaluate.summary import EvaluationMetrics, RunMetrics

QUALITY, COST, TTFT, MEMORY = "quality.png", "cost.png", "ttft.png", "memory.png"
_MAX_BINS = 8
_ASIDE = 0.003
_MARKERS = "osD^vP*Xph"


def draw_plots(metrics: EvaluationMetrics, predictions: Sequence[Prediction], folder: Path) -> None:
    """Write the four plots into ``folder``."""
    if not metrics.runs:
        return
    styles = _styles([run.method for run in metrics.runs])
    _quality(metrics.runs, styles).savefig(folder / QUALITY)
    _cost(metrics.runs, styles).savefig(folder / COST)
    shown = _smallest_ratios(predictions)
    ttft = _by_context(shown, lambda p: p.ttft_s, "time to first token (s)", styles)
    ttft.savefig(folder / TTFT)
    memory = _by_context(shown, lambda p: p.kv_bytes_resident / 1e6, "resident KV (MB, 10⁶ bytes)", styles)
    memory.savefig(folder / MEMORY)


@dataclass(frozen=True)
class _Panel:
    """A plot of one figure against the ratio."""

    label: str
    figure_of: Callable[[RunMetrics], float]
    interval_of: Callable[[RunMetrics], tuple[float, float]] | None = None


def _quality(runs: Sequence[RunMetrics], styles: dict[str, dict[str, Any]]) -> Any:
    """Answer recall, F1 and gold NLL against the ratio.

    A bar is the interval of the difference from full prefill, added to full prefill's own figure. If it crosses full
    prefill's line, the difference is within the noise.
    """
    return _against_ratio(
        runs,
        styles,
        _Panel(
            "answer recall (higher is better)", lambda r: r.recall, lambda r: _share(r.recall_full, r.recall_diff_ci95)
        ),
        _Panel("F1 (higher is better)", lambda r: r.f1, lambda r: _share(r.f1_full, r.f1_diff_ci95)),
        _Panel(
            "gold NLL (nats/token, lower is better)",
            lambda r: r.gold_nll,
            lambda r: (r.gold_nll_full + r.gold_nll_diff_ci95[0], r.gold_nll_full + r.gold_nll_diff_ci95[1]),
        ),
    )


def _cost(runs: Sequence[RunMetrics], styles: dict[str, dict[str, Any]]) -> Any:
    """Time to the first token and resident KV against the ratio."""
    return _against_ratio(
        runs,
        styles,
        _Panel("time to first token (s, median)", lambda r: r.ttft_s_median),
        _Panel("resident KV (MB, 10⁶ bytes)", lambda r: r.kv_bytes_resident_mean / 1e6),
        from_zero=True,
    )


def _share(origin: float, interval: tuple[float, float]) -> tuple[float, float]:
    return max(origin + interval[0], 0.0), min(origin + interval[1], 1.0)


def _against_ratio(
    runs: Sequence[RunMetrics], styles: dict[str, dict[str, Any]], *panels: _Panel, from_zero: bool = False
) -> Any:
    """Draw a column per data set and a row per panel. Methods without a ratio are horizontal lines."""
    data_sets = list(dict.fromkeys(run.data for run in runs))
    figure, axes = _figure(len(panels), len(data_sets))
    for column, data in enumerate(data_sets):
        own = [run for run in runs if run.data == data]
        for axis, panel in zip(axes[:, column], panels, strict=True):
            _draw_panel(axis, own, panel, styles)
            if from_zero:
                axis.set_ylim(bottom=0)
        axes[0][column].set_title(f"{data} (n = {max(run.n for run in own)})")
        axes[-1][column].set_xlabel("sequence ratio (requested)")
        axes[-1][column].set_xlim(left=0)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        axis.set_ylabel(panel.label)
    return _with_legend(figure, axes)


def _draw_panel(axis: Any, runs: Sequence[RunMetrics], panel: _Panel, styles: dict[str, dict[str, Any]]) -> None:
    for number, (method, style) in enumerate(styles.items()):
        own = sorted((run for run in runs if run.method == method), key=lambda run: run.sequence_ratio)
        values = [panel.figure_of(run) for run in own]
        if own and method in WITHOUT_RATIO:
            axis.axhline(values[0], color=style["color"], linestyle="--", linewidth=1.2, label=method)
        elif own:
            aside = _ASIDE * (number - len(styles) / 2)  # keeps the bars of methods apart
            ratios = [run.sequence_ratio + aside for run in own]
            axis.plot(ratios, values, label=method, linewidth=1.2, **style)
            if panel.interval_of is not None:
                axis.vlines(ratios, *zip(*map(panel.interval_of, own), strict=True), color=style["color"], alpha=0.5)


def _by_context(
    predictions: Sequence[Prediction],
    figure_of: Callable[[Prediction], float],
    unit: str,
    styles: dict[str, dict[str, Any]],
) -> Any:
    """Draw a dot per answer, and a line through the medians of bins of similar prompt length."""
    figure, axes = _figure(1, 1)
    axis = axes[0][0]
    for task in dict.fromkeys(p.task for p in sorted(predictions, key=lambda p: p.method != REFERENCE)):
        own = [p for p in predictions if p.task == task]
        style = styles[task.method]
        axis.scatter([p.prompt_tokens for p in own], [figure_of(p) for p in own], s=8, alpha=0.25, color=style["color"])
        middles = [(median(p.prompt_tokens for p in bin_), median(map(figure_of, bin_))) for bin_ in _bins(own)]
        label = task.method if task.ratio is None else f"{task.method}, {task.ratio:g}"
        axis.plot(*zip(*middles, strict=True), label=label, linewidth=1.4, **style)
    axis.set_xlabel("prompt length (tokens)")
    axis.set_ylabel(unit)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    return _with_legend(figure, axes)


def _smallest_ratios(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Keep each method's smallest ratio; all ratios would hide one another."""
    smallest: dict[str, Task] = {}
    for task in sorted({p.task for p in predictions}, key=lambda task: task.ratio or 1.0):
        smallest.setdefault(task.method, task)
    return [p for p in predictions if p.task == smallest[p.method]]


def _bins(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """Split into bins of about equal size by prompt length."""
    ordered = sorted(predictions, key=lambda p: p.prompt_tokens)
    size = max(1, -(-len(ordered) // _MAX_BINS))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    names = sorted(set(methods), key=lambda name: (name != REFERENCE, name))
    return {
        name: {"color": "black" if name == REFERENCE else f"C{i - 1}", "marker": _MARKERS[i % len(_MARKERS)], "ms": 4}
        for i, name in enumerate(names)
    }


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    figure = Figure(figsize=(1.8 + 3.6 * max(columns, 1.4), 0.6 + 3.0 * max(rows, 1.3)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex="col")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _with_legend(figure: Any, axes: Any) -> Any:
    labelled: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        labelled |= dict(zip(labels, handles, strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside right upper", frameon=False, fontsize="small")
    return figure
