"""From the texts of the command line to options."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

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


def parse_engine_options(settings: Sequence[str]) -> dict[str, Any]:
    """``["block_tokens=8", "recompute=false"]`` to options of SamKVConfig.

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


def _parse_value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a word, such as overwrite
