"""Run every method on every case, full prefill first, and write each answer at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from samkv_apps.evaluate.answering import Answerer
from samkv_apps.evaluate.controls import SAME_TTFT
from samkv_apps.evaluate.corpus import arranged
from samkv_apps.evaluate.datasets import Case, load_cases, retrieval_recall
from samkv_apps.evaluate.environment import describe_run, open_engine
from samkv_apps.evaluate.options import EvaluationOptions, Task
from samkv_apps.evaluate.plots import draw_plots
from samkv_apps.evaluate.records import Prediction, RunFolder, read_reference
from samkv_apps.evaluate.report import write_report
from samkv_apps.evaluate.summary import EvaluationMetrics, summarise
from samkv_apps.terminal import require_packages


def evaluate(options: EvaluationOptions) -> EvaluationMetrics:
    """Run or continue an evaluation, write its folder, and return its figures.

    Raises:
        CaseFileError: a case file cannot be read.
        ConfigurationError: the folder contains something else, or an evaluation with other options.
        EvaluationError: a method could not run as requested.
    """
    if options.plots:
        require_packages({"matplotlib": "matplotlib"}, "drawing plots", "plots")  # before a long run, not after
    loaded = [load_cases(file, options.limit, options.seed) for file in options.data]
    folder = RunFolder(options.output_dir)
    data_sets = {
        file.stem: arranged(cases, load_cases(file) if options.corpus else cases, options)
        for file, cases in zip(options.data, loaded, strict=True)
    }
    with open_engine(options) as engine:
        config = describe_run(options, engine)
        for name, cases in data_sets.items():
            config["data"][name]["retrieved"] = retrieval_recall(cases)
        adopted = read_reference(options.reference, config) if options.reference else []
        config = folder.start(config)
        own = {(name, case.case_id) for name, cases in data_sets.items() for case in cases}
        folder.adopt([prediction for prediction in adopted if (prediction.data, prediction.case) in own])
        engine.add_chunks(chunk for cases in data_sets.values() for case in cases for chunk in case.every_chunk)
        answerer = Answerer(engine, options)
        for _ in _Run(answerer, folder, options.tasks()).run(data_sets):
            metrics = _write_results(folder, config)
    return metrics


class _Run:
    """Answers what a folder still lacks."""

    def __init__(self, answerer: Answerer, folder: RunFolder, tasks: Sequence[Task]) -> None:
        self._answerer = answerer
        self._folder = folder
        self._tasks = tasks

    def run(self, data_sets: dict[str, list[Case]]) -> Iterator[str]:
        """Yield each data set's name once every case of it has been answered by every method."""
        num_pending = sum(len(self._all_pending(data, cases)) for data, cases in data_sets.items())
        with tqdm(total=num_pending, desc="Evaluating", unit="answer", disable=None) as bar:
            for data, cases in data_sets.items():
                self._warm_up(data, cases)
                for i, case in enumerate(cases):
                    for task in self._pending(data, case, i):
                        bar.set_postfix_str(f"{data} {task.method}")
                        self._folder.append(self._answerer.answer(data, case, task, self._earlier(data, case)))
                        bar.update()
                yield data

    def _pending(self, data: str, case: Case, number: int) -> list[Task]:
        """Return the tasks to run on a case, full prefill first, since it reads no cache.

        The order of the others rotates from case to case, so that none always finds the chunks' files in the
        page cache. A task that needs another's time comes last.
        """
        reference, *others = self._tasks
        turn = number % len(others) if others else 0
        rotated = sorted([*others[turn:], *others[:turn]], key=lambda task: task.method == SAME_TTFT)
        return [t for t in [reference, *rotated] if self._folder.find(data, case.case_id, t) is None]

    def _all_pending(self, data: str, cases: Sequence[Case]) -> list[Task]:
        return [task for i, case in enumerate(cases) for task in self._pending(data, case, i)]

    def _warm_up(self, data: str, cases: Sequence[Case]) -> None:
        """Run each method that will be timed once on the first case, since first calls are slower."""
        pending = {task.method for task in self._all_pending(data, cases)}
        one_of_each = {task.method: task for task in self._tasks if task.method in pending}
        earlier = self._earlier(data, cases[0])
        for task in sorted(one_of_each.values(), key=lambda task: task.method == SAME_TTFT):
            earlier[task] = self._answerer.answer(data, cases[0], task, earlier)

    def _earlier(self, data: str, case: Case) -> dict[Task, Prediction]:
        found = {task: self._folder.find(data, case.case_id, task) for task in self._tasks}
        return {task: prediction for task, prediction in found.items() if prediction is not None}


def _write_results(folder: RunFolder, config: dict[str, Any]) -> EvaluationMetrics:
    metrics = summarise(folder.predictions, config["seed"] or 0)
    folder.write_json("metrics.json", metrics.to_dict())
    folder.write_text("report.md", write_report(config, metrics))
    if config["plots"]:
        draw_plots(metrics, folder.predictions, folder.folder)
    return metrics
