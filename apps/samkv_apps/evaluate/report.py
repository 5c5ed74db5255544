"""The report: tables, how they were measured, and diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from samkv_apps.evaluate.answering import CHUNKS_MISSED
from samkv_apps.evaluate.controls import CONTROLS
from samkv_apps.evaluate.plots import COST, MEMORY, QUALITY, TTFT
from samkv_apps.evaluate.summary import EvaluationMetrics, RunMetrics
from samkv_rag.diagnostics import MEANINGS

_MEANINGS = MEANINGS | {CHUNKS_MISSED: "the store lacked chunks; the time to the first token includes their prefill"}
_COLUMNS: dict[str, Callable[[RunMetrics], str]] = {
    "method": lambda run: run.method,
    "ratio": lambda run: f"{run.sequence_ratio:g}",
    "n": lambda run: str(run.n),
    "recall": lambda run: f"{run.recall:.3f}",
    "F1": lambda run: f"{run.f1:.3f}",
    "EM": lambda run: f"{run.em:.3f}",
    "gold NLL": lambda run: f"{run.gold_nll:.3f}",
    "recall − full, 95%": lambda run: "{:+.3f} to {:+.3f}".format(*run.recall_diff_ci95),
    "F1 − full, 95%": lambda run: "{:+.3f} to {:+.3f}".format(*run.f1_diff_ci95),
    "NLL − full, 95%": lambda run: "{:+.3f} to {:+.3f}".format(*run.gold_nll_diff_ci95),
    "TTFT s": lambda run: f"{run.ttft_s_median:.3f}",
    "TTFT ÷ full": lambda run: f"{run.ttft_ratio_median:.3f}",
    "kept": lambda run: f"{run.sequence_ratio_mean:.3f}",
    "recomputed": lambda run: f"{run.recompute_ratio_mean:.3f}",
    "KV MB": lambda run: f"{run.kv_bytes_resident_mean / 1e6:.2f}",
    "KV ÷ full": lambda run: f"{run.kv_bytes_resident_mean / run.kv_bytes_full_mean:.3f}",
    "support kept": lambda run: _known(run.supporting_recall, 2),
    "answer kept": lambda run: _known(run.answer_retained, 2),
    "recall, full right": lambda run: _known(run.recall_full_right),
    "F1, full right": lambda run: _known(run.f1_full_right),
}


def write_report(config: dict[str, Any], metrics: EvaluationMetrics) -> str:
    """Return the report in Markdown."""
    data_sets = list(dict.fromkeys(run.data for run in metrics.runs))
    parts = [f"# Evaluation of {config['model']}\n"]
    parts += [_table(data, [run for run in metrics.runs if run.data == data]) for data in data_sets]
    parts += [*([_plots()] if config["plots"] else []), _how_measured(config), _diagnostics(metrics.runs)]
    return "\n".join(parts)


def _table(data: str, runs: Sequence[RunMetrics]) -> str:
    rows = [[*_COLUMNS], ["---"] * len(_COLUMNS), *([text_of(run) for text_of in _COLUMNS.values()] for run in runs)]
    return f"## {data}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _known(figure: float | None, digits: int = 3) -> str:
    return "" if figure is None else f"{figure:.{digits}f}"


def _plots() -> str:
    shown = (
        (QUALITY, "Answer quality against sequence ratio"),
        (COST, "Time to first token and resident KV against sequence ratio"),
        (TTFT, "Time to first token against context length"),
        (MEMORY, "Resident KV against context length"),
    )
    return "## Plots\n\n" + "\n\n".join(f"![{title}]({name})" for name, title in shown) + "\n"


def _how_measured(config: dict[str, Any]) -> str:
    hardware, versions = config["hardware"], config["versions"]
    device = hardware["gpu"] or f"{hardware['processor']}, {hardware['cores']} cores, {hardware['threads']} threads"
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        f"{config['model']} in {config['dtype']} on {device}; {libraries}.",
        f"Cases: {_which_cases(config)}. Every method answered the same cases with the same prompt, clock and "
        f"decoding: greedy, at most {config['max_new_tokens']} tokens, cut at the first line break.",
        f"The prompt: {_which_prompt(config)}. Chunks in it: {_which_chunks(config)}.",
        "F1 and EM: SQuAD normalisation, best over the answers. Recall: share of the right answer's words in the "
        "model's answer; unlike F1 it does not punish full sentences. Gold NLL: mean negative log-likelihood per token "
        "of the first right answer, teacher-forced after the same prefill.",
        "Intervals: 95%, paired bootstrap over cases of the method's difference from full prefill, 10,000 resamples.",
        "TTFT: median seconds from the rendered prompt to the first token, including recognition, reading and checking "
        "of the chunks' KV, and a compressor's own work. TTFT ÷ full: median over cases of the ratio to full prefill "
        "on the same case. Each method ran once before as a warm-up. On each case full prefill ran first; the order "
        "of the others rotated.",
        "Ratio: requested share. Kept and recomputed: mean share of the chunk tokens. KV MB: mean size of the prompt's "
        "KV while decoding, in 10⁶ bytes. Support kept: of the chunks that have the answer by the data, the mean "
        "share of tokens kept; cases without such a chunk are left out. Answer kept: share of cases whose retained "
        "text contains a right answer, among those whose chunks contain one.",
        "Full right: only the cases in which full prefill's answer has all words of a right answer.",
    ]
    lines += [f"{name}: {CONTROLS[name]}." for name in config["methods"] if name in CONTROLS]
    lines += [_retrieved(name, data["retrieved"]) for name, data in config["data"].items() if data.get("retrieved")]
    lines += [f"Full prefill's answers were taken over from {folder}." for folder in config["references"]]
    lines += [f"Some answers were made on {_in_words(machine)}." for machine in config["ran_before_on"]]
    return "## How it was measured\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def _retrieved(name: str, retrieved: dict[str, Any]) -> str:
    return (
        f"Retrieval of {name}: {retrieved['share']:.2f} of the supporting chunks were retrieved, over the "
        f"{retrieved['n']} cases that name them; no method can answer from a chunk that was not retrieved."
    )


def _which_prompt(config: dict[str, Any]) -> str:
    if config["prompt"] is not None:
        return "given, see config.json"
    return "the default" if config["template"] is None else f"the template {config['template']}"


def _which_chunks(config: dict[str, Any]) -> str:
    if (retrieval := config["retrieval"]) is None:
        return "in the order of the case file"
    order = str(retrieval["order"]).replace("_", " ")
    if not retrieval["corpus"]:
        return order + (f" by {retrieval['retriever']}" if retrieval["retriever"] else "")
    return f"{order}, the {retrieval['top_k']} nearest by {retrieval['retriever']} of all chunks of the data file"


def _which_cases(config: dict[str, Any]) -> str:
    limit, seed = config["limit"], config["seed"]
    if limit is None:
        return "all of each file"
    return f"first {limit} of each file" if seed is None else f"sample of {limit} of each file, seed {seed}"


def _in_words(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for part in machine.values() for name, value in part.items())


def _diagnostics(runs: Iterable[RunMetrics]) -> str:
    rows = [
        f"| {run.data} | {run.method} | {run.sequence_ratio:g} | {name} | {count} of {run.n} | {_MEANINGS[name]} |"
        for run in runs
        for name, count in run.diagnostics.items()
    ]
    table = ["| data | method | ratio | diagnostic | cases | meaning |", "| --- " * 6 + "|", *rows]
    return "## Diagnostics\n\n" + ("\n".join(table) if rows else "There were none.") + "\n"
