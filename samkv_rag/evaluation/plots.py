"""PNG plots of an evaluation; the only part that needs matplotlib, which it imports when it draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from samkv_rag.evaluation.options import REFERENCE, Task
from samkv_rag.evaluation.records import Prediction
from samkv_rag.evaluation.summary import EvaluationMetrics, RunMetrics
from samkv_rag.exceptions import ConfigurationError

QUALITY, TTFT, MEMORY = "quality.png", "ttft.png", "memory.png"
_MAX_BINS = 8
_MARKERS = "osD^vP*Xph"


def require_matplotlib() -> None:
    """Find out before a long run, not after it, that nothing can be drawn.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigurationError('the evaluation draws with matplotlib; pip install "samkv-rag[evaluate]"')


def draw_plots(metrics: EvaluationMetrics, predictions: Sequence[Prediction], folder: Path) -> None:
    """Write the three plots into ``folder``."""
    if not metrics.runs:
        return
    styles = _styles([run.method for run in metrics.runs])
    _save(_quality(metrics.runs, styles), folder / QUALITY)
    shown = _smallest_ratios(predictions)
    ttft = _by_context(shown, lambda p: p.ttft_s, "time to first token (s)", styles)
    _save(ttft, folder / TTFT)
    memory = _by_context(shown, lambda p: p.kv_bytes_resident / 1e6, "resident KV (MB, 10⁶ bytes)", styles)
    _save(memory, folder / MEMORY)


def _quality(runs: Sequence[RunMetrics], styles: dict[str, dict[str, Any]]) -> Any:
    """F1 and gold NLL against the ratio; methods without one are horizontal lines."""
    data_sets = list(dict.fromkeys(run.data for run in runs))
    figure, axes = _figure(2, len(data_sets))
    for column, data in enumerate(data_sets):
        own = [run for run in runs if run.data == data]
        _draw_quality(axes[0][column], own, lambda run: run.f1, styles)
        _draw_quality(axes[1][column], own, lambda run: run.gold_nll, styles)
        axes[0][column].set_title(f"{data} (n = {max(run.n for run in own)})")
        axes[1][column].set_xlabel("sequence ratio asked for")
    axes[0][0].set_ylabel("F1 (higher is better)")
    axes[1][0].set_ylabel("gold NLL (nats/token, lower is better)")
    return _with_legend(figure, axes)


def _draw_quality(
    axis: Any, runs: Sequence[RunMetrics], figure_of: Callable[[RunMetrics], float], styles: dict[str, dict[str, Any]]
) -> None:
    for method, style in styles.items():
        points = sorted((run.sequence_ratio, figure_of(run)) for run in runs if run.method == method)
        if points and method in ("full_prefill", "naive_reuse"):
            axis.axhline(points[0][1], color=style["color"], linestyle="--", linewidth=1.2, label=method)
        elif points:
            axis.plot(*zip(*points, strict=True), label=method, linewidth=1.2, **style)


def _by_context(
    predictions: Sequence[Prediction],
    figure_of: Callable[[Prediction], float],
    unit: str,
    styles: dict[str, dict[str, Any]],
) -> Any:
    """One dot an answer, and a line through the medians of bins of like prompt length."""
    figure, axes = _figure(1, 1)
    axis = axes[0][0]
    for task in dict.fromkeys(p.task for p in sorted(predictions, key=lambda p: p.method != REFERENCE)):
        own = [p for p in predictions if p.task == task]
        style = styles[task.method]
        axis.scatter([p.prompt_tokens for p in own], [figure_of(p) for p in own], s=8, alpha=0.25, color=style["color"])
        middles = [(median(p.prompt_tokens for p in bin_), median(map(figure_of, bin_))) for bin_ in _bins(own)]
        label = task.method if task.ratio is None else f"{task.method}, {task.ratio:g}"
        axis.plot(*zip(*middles, strict=True), label=label, linewidth=1.4, **style)
    axis.set_xlabel("context length (tokens of the whole prompt)")
    axis.set_ylabel(unit)
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    return _with_legend(figure, axes)


def _smallest_ratios(predictions: Sequence[Prediction]) -> list[Prediction]:
    """Each method at its smallest ratio alone: all of them would hide one another."""
    smallest: dict[str, Task] = {}
    for task in sorted({p.task for p in predictions}, key=lambda task: task.ratio or 1.0):
        smallest.setdefault(task.method, task)
    return [p for p in predictions if p.task == smallest[p.method]]


def _bins(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """Bins of about equally many, by prompt length."""
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
    from matplotlib.figure import Figure  # drawn without pyplot: no window, no global state

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


def _save(figure: Any, file: Path) -> None:
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
    canvas(figure).print_png(str(file))
