"""An evaluation's folder: its configuration, and one prediction per line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.errors import EvaluationError
from samkv_apps.evaluate.options import REFERENCE, Task
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.disk import WRITING_PREFIX

FORMAT = "samkv-evaluation-1"
KV_FOLDER, CASES_FILE = "kv", "cases.jsonl"
_CONFIG_FILE, _PREDICTIONS_FILE = "config.json", "predictions.jsonl"


@dataclass(frozen=True)
class Prediction:
    """One method's answer to one case, and its cost. Times are in seconds, sizes in bytes.

    ``ratio`` is the requested share, ``sequence_ratio`` the share kept. ``prompt_tokens`` and ``kv_bytes_full`` are
    those of the case's whole prompt, also if the method shortened it.
    """

    data: str
    case: str
    method: str
    ratio: float | None
    prediction: str
    f1: float
    em: float
    recall: float
    gold_nll: float
    ttft_s: float
    total_s: float
    phase_s: dict[str, float]
    sequence_ratio: float
    recompute_ratio: float
    kv_bytes_resident: int
    kv_bytes_full: int
    prompt_tokens: int
    chunk_tokens: int
    supporting_recall: float | None
    diagnostics: dict[str, str]
    """Names and messages of the engine's diagnostics."""
    answer_retained: float | None = None
    """1 if the retained text contains a right answer, else 0; None if the chunks contain none."""

    @property
    def task(self) -> Task:
        """Method and ratio."""
        return Task(self.method, self.ratio)


class RunFolder:
    """An evaluation's folder, new or to be continued.

    Raises:
        ConfigurationError: the folder contains something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._predictions_file = folder / _PREDICTIONS_FILE
        self._earlier = self._read_earlier()
        self._predictions: dict[tuple[str, str, Task], Prediction] = {}

    @property
    def predictions(self) -> list[Prediction]:
        """All predictions, oldest first."""
        return list(self._predictions.values())

    def start(self, config: dict[str, Any]) -> dict[str, Any]:
        """Write ``config``, merged with that of earlier runs in this folder, and return it.

        Raises:
            ConfigurationError: an earlier run's configuration disagrees.
        """
        config = json.loads(json.dumps(config))  # tuples become lists, as in the earlier configuration
        merged = _continued(self._earlier, config) if self._earlier else config
        self.write_json(_CONFIG_FILE, {"format": FORMAT} | merged)
        if self._earlier:
            _cut_half_line(self._predictions_file)
            self._predictions = {_key(p): p for p in read_predictions(self.folder)}
        return merged

    def require_new(self) -> None:
        """Refuse a folder with an earlier run, for an evaluation that cannot be continued.

        Raises:
            ConfigurationError: the folder has one.
        """
        if self._earlier is not None:
            raise ConfigurationError(f"{self.folder} holds an evaluation already; choose another --output-dir")

    def adopt(self, predictions: Iterable[Prediction]) -> None:
        """Add the predictions of another folder that are not here yet."""
        for prediction in predictions:
            if _key(prediction) not in self._predictions:
                self.append(prediction)

    def find(self, data: str, case_id: str, task: Task) -> Prediction | None:
        """Return an earlier prediction, if there is one."""
        return self._predictions.get((data, case_id, task))

    def append(self, prediction: Prediction) -> None:
        """Write a prediction to the file at once."""
        with self._predictions_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
        self._predictions[_key(prediction)] = prediction

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a file of the folder atomically."""
        self.write_text(name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{name}.part"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / name)

    def _read_earlier(self) -> dict[str, Any] | None:
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigurationError(f"{self.folder} is a file; choose another --output-dir")
        # A run that was killed early may have left only its store or its cases.
        there = self.folder.iterdir() if self.folder.exists() else ()
        if all(path.name in (KV_FOLDER, CASES_FILE) or _is_half_written(path.name) for path in there):
            return None
        config = read_config(self.folder)
        if config is None:
            raise ConfigurationError(f"{self.folder} is not empty and holds no evaluation; choose another --output-dir")
        return config


def _is_half_written(name: str) -> bool:
    return name.endswith(".part") or name.startswith(WRITING_PREFIX)


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of the evaluation in ``folder``, or None if there is no evaluation."""
    try:
        config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("format") == FORMAT else None


def read_predictions(folder: Path) -> Iterator[Prediction]:
    """Yield the predictions in ``folder``, except a last line that is still being written.

    Raises:
        EvaluationError: a line is damaged.
    """
    file = folder / _PREDICTIONS_FILE
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            yield Prediction(**json.loads(line))
        except (ValueError, TypeError) as error:
            message = f"{file}, line {number} is not a prediction of this version; delete it, it will be run again"
            raise EvaluationError(message) from error


def _cut_half_line(file: Path) -> None:
    """Remove an incomplete last line, which a killed run left."""
    if file.exists():
        content = file.read_bytes()
        with file.open("r+b") as opened:
            opened.truncate(content.rfind(b"\n") + 1)


def _key(prediction: Prediction) -> tuple[str, str, Task]:
    return prediction.data, prediction.case, prediction.task


# Versions and hardware must agree because times are compared with full prefill's.
_REFERENCE_MUST_AGREE = (
    "dtype", "model_fingerprint", "max_new_tokens", "prompt", "template", "retrieval", "versions", "hardware",
)  # fmt: skip
# The fingerprint includes the dtype, but its error message would not name it.
_MUST_AGREE = ("dtype", "model_fingerprint", "seed", "max_new_tokens", "prompt", "template", "retrieval", "more_top_k")


def _require_agreement(names: Iterable[str], config: Mapping[str, Any], earlier: Mapping[str, Any], where: str) -> None:
    """Check that two configurations agree in ``names`` and in the content of the data that both have.

    ``where`` is the end of the error message: the place of the earlier configuration, and the remedy.
    """
    found = {name: (config[name], earlier.get(name)) for name in names}
    for data in sorted(earlier["data"].keys() & config["data"].keys()):
        found[f"sha256 of data {data}"] = (config["data"][data]["sha256"], earlier["data"][data]["sha256"])
    _require_equal(found, where)


def read_reference(folder: Path, config: Mapping[str, Any]) -> list[Prediction]:
    """Return full prefill's predictions in ``folder`` for the data of ``config``, the evaluation to run.

    Raises:
        ConfigurationError: the folder has no evaluation, or a different one.
    """
    earlier = read_config(folder)
    if earlier is None:
        raise ConfigurationError(f"reference {folder} holds no evaluation; give a folder that samkv evaluate wrote")
    _require_agreement(_REFERENCE_MUST_AGREE, config, earlier, f"reference {folder}; evaluate without it")
    return [p for p in read_predictions(folder) if p.method == REFERENCE and p.data in config["data"]]


def _require_equal(found: Mapping[str, tuple[object, object]], where: str) -> None:
    for name, (now, earlier) in found.items():
        if now != earlier:
            raise ConfigurationError(f"{name} is {now!r}, but {earlier!r} in {where}")


def _continued(earlier: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Add the data, methods and ratios of ``earlier``, which must agree with ``config``."""
    where = "the evaluation that this folder holds; choose another --output-dir"
    _require_agreement(_MUST_AGREE, config, earlier, where)
    now, before = config["options"], earlier["options"]
    _require_equal({f"option {name}": (now.get(name), before.get(name)) for name in sorted({*now, *before})}, where)
    if config["limit"] is not None and (earlier["limit"] is None or config["limit"] < earlier["limit"]):
        _require_equal({"limit": (config["limit"], earlier["limit"])}, where)
    joined = {name: _joined(earlier[name], config[name]) for name in ("methods", "sequence_ratios", "references")}
    machines = _joined(earlier["ran_before_on"], [_machine(earlier)])
    return config | {
        **joined,
        "data": earlier["data"] | config["data"],
        "ran_before_on": [machine for machine in machines if machine != _machine(config)],
    }


def _machine(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in ("hardware", "versions")}


def _joined(earlier: list[Any], added: list[Any]) -> list[Any]:
    return [*earlier, *(value for value in added if value not in earlier)]
