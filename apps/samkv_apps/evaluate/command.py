"""From the texts of the command line to options and cases."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samkv_apps.evaluate.folder import cases_from_folder
from samkv_apps.evaluate.options import EvaluationOptions
from samkv_apps.evaluate.records import RunFolder
from samkv_rag.exceptions import ConfigurationError

_WORDS = {"true": True, "false": False, "none": None}


def split_list(text: str) -> list[str]:
    """``"a, b"`` to ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_ratios(text: str) -> list[float]:
    """``"0.15,0.3"`` to numbers.

    Raises:
        ConfigurationError: a part is no number.
    """
    try:
        return [float(part) for part in split_list(text)]
    except ValueError as error:
        raise ConfigurationError(f"sequence_ratio is {text!r}; give numbers, separated by commas") from error


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """``["block_tokens=8", "recompute=false"]`` to options.

    Raises:
        ConfigurationError: a setting is not ``name=value``.
    """
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"--option is {setting!r}; give name=value")
        options[name.strip()] = _parse_value(value.strip())
    return options


def read_prompt(file: Path | None) -> str | None:
    """The text of a prompt's file; None where none is given.

    Raises:
        ConfigurationError: it cannot be read.
    """
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--prompt {file} cannot be read ({error}); give a text file in UTF-8") from error


def make_cases(options: EvaluationOptions, documents: Path, questions: Path) -> None:
    """Make the case file in the output folder, unless it is there; what would fail later fails before.

    Raises:
        SamKVError: as cases_from_folder, or the output folder holds something else.
    """
    RunFolder(options.output_dir)
    cases_from_folder(documents, questions, options.output_dir, options.model, options.top_k)


def _parse_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word, such as overwrite
