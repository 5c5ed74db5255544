"""Parse the values of the command line's options."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samkv_rag.exceptions import ConfigurationError

_WORDS = {"true": "True", "false": "False", "none": "None"}


def split_list(text: str) -> list[str]:
    """Turn ``"a, b"`` into ``["a", "b"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_ratios(text: str) -> list[float]:
    """Turn ``"0.15,0.3"`` into numbers.

    Raises:
        ConfigurationError: a part is not a number.
    """
    try:
        return [float(part) for part in split_list(text)]
    except ValueError as error:
        raise ConfigurationError(f"sequence_ratio is {text!r}; give numbers, separated by commas") from error


def parse_options(settings: Sequence[str]) -> dict[str, Any]:
    """Turn ``["block_tokens=8", "recompute=false"]`` into options. A value that is not a literal is a string.

    Raises:
        ConfigurationError: a setting is not ``name=value``.
    """
    options: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise ConfigurationError(f"--option is {setting!r}; give name=value")
        value = _WORDS.get(value.strip().lower(), value.strip())
        try:
            options[name.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name.strip()] = value
    return options


def read_prompt(file: Path | None) -> str | None:
    """Return the text of a prompt file, or None without a file.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--prompt {file} cannot be read ({error}); give a text file in UTF-8") from error
