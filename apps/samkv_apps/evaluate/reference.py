"""Full prefill's answers taken over from another evaluation, which put the same to the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.options import REFERENCE
from samkv_apps.evaluate.records import Prediction, read_config, read_predictions
from samkv_rag.exceptions import ConfigurationError

# Versions and hardware too, since times are compared with full prefill's.
_MUST_AGREE = (
    "dtype",
    "model_fingerprint",
    "max_new_tokens",
    "prompt",
    "template",
    "retrieval",
    "versions",
    "hardware",
)


def read_reference(folder: Path, config: Mapping[str, Any]) -> list[Prediction]:
    """Full prefill's predictions in ``folder`` about the data of ``config``, the evaluation to be run.

    Raises:
        ConfigurationError: no evaluation there, or one that full prefill would have answered otherwise.
    """
    earlier = read_config(folder)
    if earlier is None:
        raise ConfigurationError(f"reference {folder} holds no evaluation; give a folder that samkv evaluate wrote")
    for name in _MUST_AGREE:
        _require_equal(folder, name, earlier.get(name), config[name])
    shared = earlier["data"].keys() & config["data"].keys()
    for name in sorted(shared):
        _require_equal(
            folder, f"sha256 of data {name}", earlier["data"][name]["sha256"], config["data"][name]["sha256"]
        )
    return [p for p in read_predictions(folder) if p.method == REFERENCE and p.data in shared]


def _require_equal(folder: Path, name: str, earlier: object, now: object) -> None:
    if earlier != now:
        raise ConfigurationError(f"{name} is {now!r}, but {earlier!r} in reference {folder}; evaluate without it")
