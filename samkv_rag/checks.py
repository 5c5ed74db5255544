"""Checks of option values."""

from __future__ import annotations

import math
from collections.abc import Collection
from difflib import get_close_matches

from samkv_rag.exceptions import ConfigurationError, SamKVError


def refuse_unknown(options: Collection[str], known: Collection[str]) -> None:
    """Refuse options that do not exist, and name the nearest one that does."""
    if unknown := sorted(set(options) - set(known)):
        near = [match for name in unknown for match in get_close_matches(name, known, n=1)]
        guess = f"did you mean {', '.join(near)}? " if near else ""
        raise ConfigurationError(
            f"unknown option {', '.join(unknown)}; {guess}known are {', '.join(sorted(known)) or 'none'}"
        )


def require_choice(name: str, value: object, choices: Collection[object]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ConfigurationError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")


def require_bool(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} is {value!r}; it must be True or False")


def require_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limit = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigurationError(f"{name} is {value!r}; it must be an integer {limit}")


def require_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value > 1e308:
        limit = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ConfigurationError(f"{name} is {value!r}; it must be a number {limit}")


def half_pair_at(text: str) -> int | None:
    """Return where a text has half a surrogate pair, which is not valid Unicode, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def require_unicode(name: str, text: str, error: type[SamKVError]) -> None:
    """Refuse a text with half a surrogate pair."""
    if (at := half_pair_at(text)) is not None:
        raise error(
            f"{name} holds half a surrogate pair ({text[at]!r}) at character {at}, which is not valid Unicode; decode "
            "its bytes with errors='replace'"
        )
