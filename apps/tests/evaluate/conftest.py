"""Cases, options and a command for evaluations of a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluating import Answered, Options, write_cases

from samkv_apps.evaluate import EvaluationOptions
from samkv_apps.evaluate.answering import Answerer
from samkv_apps.evaluate.datasets import Case
from samkv_apps.evaluate.options import Task
from support.commands import Run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, so that chunks are ingested once."""
    return tmp_path_factory.mktemp("store") / "kv"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("data") / "tides.jsonl", supporting=["Record 1"])


@pytest.fixture
def options(model_folder: Path, store: Path, cases: Path, tmp_path: Path) -> Options:
    def make(**changes: Any) -> EvaluationOptions:
        defaults: dict[str, Any] = {
            "model": str(model_folder),
            "data": [cases],
            "output_dir": tmp_path / "out",
            "methods": ["scout", "naive_reuse"],
            "sequence_ratios": [0.4],
            "store": store,
            "dtype": "float32",
            "max_new_tokens": 4,
            "options": {"block_tokens": 8},
        }
        return EvaluationOptions(**(defaults | changes))

    return make


@pytest.fixture
def command(run: Run, model_folder: Path, store: Path) -> Callable[..., str]:
    """A function: output folder and other arguments of `samkv evaluate` to its output."""

    def call(output_dir: Path, *arguments: object) -> str:
        common = ["--model", model_folder, "--store", store, "--dtype", "float32", "--output-dir", output_dir]
        status, printed, errors = run("evaluate", *common, *arguments)
        assert (status, errors) == (0, "")
        return printed

    return call


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answered:
    made: Answered = []
    answer = Answerer.answer

    def record(self: Answerer, data: str, case: Case, task: Task, earlier: Any) -> Any:
        made.append((case.case_id, task.method, task.ratio))
        return answer(self, data, case, task, earlier)

    monkeypatch.setattr(Answerer, "answer", record)
    return made
