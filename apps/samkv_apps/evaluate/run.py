"""The loop: every method on every case, full prefill first, each answer written down at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from samkv_apps.evaluate.answering import Answerer
from samkv_apps.evaluate.controls import SAME_TTFT
from samkv_apps.evaluate.corpus import arranged
from samkv_apps.evaluate.datasets import Case, load_cases, retrieval_recall
from samkv_apps.evaluate.environment import describe_run
from samkv_apps.evaluate.options import EvaluationOptions, Task
from samkv_apps.evaluate.plots import draw_plots, require_matplotlib
from samkv_apps.evaluate.records import KV_FOLDER, Prediction, RunFolder
from samkv_apps.evaluate.reference import read_reference
from samkv_apps.evaluate.report import write_report
from samkv_apps.evaluate.summary import EvaluationMetrics, summarise
from samkv_rag.engine import SamKVEngine


@dataclass(frozen=True)
class _DataSet:
    name: str
    cases: list[Case]


def evaluate(options: EvaluationOptions) -> EvaluationMetrics:
    """Run or continue an evaluation, write its folder, and return its figures.

    Raises:
        CaseFileError: a case file cannot be read.
        ConfigurationError: the folder holds something else, or an evaluation of another kind.
        EvaluationError: a method could not run as asked.
    """
    if options.plots:
        require_matplotlib()
    loaded = [load_cases(file, options.limit, options.seed) for file in options.data]
    folder = RunFolder(options.output_dir)
    data_sets = [
        _DataSet(file.stem, arranged(cases, load_cases(file) if options.corpus else cases, options))
        for file, cases in zip(options.data, loaded, strict=True)
    ]
    engine = SamKVEngine.from_pretrained(
        options.model,
        store=options.store or options.output_dir / KV_FOLDER,
        config=options.engine_config,
        dtype=options.dtype,
    )
    config = describe_run(options, engine)
    for data in data_sets:
        config["data"][data.name]["retrieved"] = retrieval_recall(data.cases)
    adopted = read_reference(options.reference, config) if options.reference else []
    config = folder.start(config)
    folder.adopt(adopted)
    engine.add_chunks(chunk for data in data_sets for case in data.cases for chunk in case.every_chunk)
    answerer = Answerer(engine, options)
    for _ in _Run(answerer, folder, options.tasks()).run(data_sets):
        metrics = _write_results(folder, config)
    return metrics


class _Run:
    """What is still to be done in a folder, and the doing."""

    def __init__(self, answerer: Answerer, folder: RunFolder, tasks: Sequence[Task]) -> None:
        self._answerer = answerer
        self._folder = folder
        self._tasks = tasks

    def run(self, data_sets: Sequence[_DataSet]) -> Iterator[_DataSet]:
        """Yield each data set once every case of it has been answered by every method."""
        with tqdm(total=sum(map(self._num_pending, data_sets)), desc="Evaluating", unit="answer", disable=None) as bar:
            for data in data_sets:
                self._warm_up(data)
                for i, case in enumerate(data.cases):
                    for task in self._pending(data.name, case, i):
                        bar.set_postfix_str(f"{data.name} {task.method}")
                        self._answer(data.name, case, task)
                        bar.update()
                yield data

    def _pending(self, data: str, case: Case, number: int) -> list[Task]:
        """What to run on a case. Full prefill reads no cache and comes first; among the others the order
        rotates from case to case, so that none always finds the chunks' files read by another before it.
        What gets the time that another took comes last."""
        reference, *others = self._tasks
        turn = number % len(others) if others else 0
        rotated = sorted([*others[turn:], *others[:turn]], key=lambda task: task.method == SAME_TTFT)
        tasks = [reference, *rotated]
        return [task for task in tasks if self._folder.find(data, case.case_id, task) is None]

    def _num_pending(self, data: _DataSet) -> int:
        return sum(len(self._pending(data.name, case, i)) for i, case in enumerate(data.cases))

    def _warm_up(self, data: _DataSet) -> None:
        """Run each method that will be timed once before, on the first case: first calls are slower."""
        pending = {task.method for i, case in enumerate(data.cases) for task in self._pending(data.name, case, i)}
        one_of_each = {task.method: task for task in self._tasks if task.method in pending}
        first = data.cases[0]
        earlier = self._earlier(data.name, first)
        for task in sorted(one_of_each.values(), key=lambda task: task.method == SAME_TTFT):
            earlier[task] = self._answerer.answer(data.name, first, task, earlier)

    def _answer(self, data: str, case: Case, task: Task) -> None:
        self._folder.append(self._answerer.answer(data, case, task, self._earlier(data, case)))

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
