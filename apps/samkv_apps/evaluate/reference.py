"""Full prefill's answers taken over from another evaluation, which put the same to the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.options import REFERENCE
from samkv_apps.evaluate.records import Prediction, read_config, read_predictions, require_agreement
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
    require_agreement(_MUST_AGREE, config, earlier, f"reference {folder}; evaluate without it")
    return [p for p in read_predictions(folder) if p.method == REFERENCE and p.data in config["data"]]
