"""Invented cases, an embedding without a model, and readers of an evaluation's files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from samkv_apps.evaluate import EvaluationOptions
from samkv_apps.evaluate.embedding import Embedder
from support import tiny

Options = Callable[..., EvaluationOptions]
Answered = list[tuple[str, str, float | None]]
"""Case, method and ratio of every answer, including warm-ups."""

_TIMES = {"ttft_s_median", "ttft_ratio_median", "phase_s_median", "ttft_s", "total_s", "phase_s"}


class LetterEmbedder(Embedder):
    """Counts letters, and records the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, text: str) -> torch.Tensor:
        self.texts.append(text)
        counts = torch.tensor([[float(text.lower().count(chr(97 + i))) for i in range(26)]])
        return torch.nn.functional.normalize(counts, dim=1)


def write_cases(file: Path, **keys: Any) -> Path:
    """Three cases of three chunks each."""
    lines = []
    for number in range(3):
        chunks = [{"title": f"Record {i}", "text": tiny.text(10 * number + i, num_words=30)} for i in range(3)]
        case = {"id": f"case-{number}", "question": "Which tide?", "answers": ["seven winters", "ebb"]}
        lines.append(json.dumps(case | {"chunks": chunks} | keys) + "\n")
    file.write_text("".join(lines))
    return file


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def runs_of(folder: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text())["runs"]
    return runs


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name not in _TIMES} for record in records]
