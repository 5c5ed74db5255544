"""Reuse full prefill's answers from another evaluation of the same prompts and model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.options import REFERENCE
from samkv_apps.evaluate.records import Prediction, read_config, read_predictions, require_agreement
from samkv_rag.exceptions import ConfigurationError

# Versions and hardware must agree because times are compared with full prefill's.
_MUST_AGREE = (
    "dtype", "model_fingerprint", "max_new_tokens", "prompt", "template", "retrieval", "versions", "hardware",
)  # fmt: skip


def read_reference(folder: Path, config: Mapping[str, Any]) -> list[Prediction]:
    """Return full prefill's predictions in ``folder`` for the data of ``config``, the evaluation to run.

    Raises:
        ConfigurationError: the folder has no evaluation, or a different one.
    """
    earlier = read_config(folder)
    if earlier is None:
        raise ConfigurationError(f"reference {folder} holds no evaluation; give a folder that samkv evaluate wrote")
    require_agreement(_MUST_AGREE, config, earlier, f"reference {folder}; evaluate without it")
    return [p for p in read_predictions(folder) if p.method == REFERENCE and p.data in config["data"]]
