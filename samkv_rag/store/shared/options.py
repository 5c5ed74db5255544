"""Byte budgets, as given by users."""

from __future__ import annotations

from samkv_rag.exceptions import ConfigurationError


def require_budget(name: str, value: object) -> int | None:
    """Return a budget in bytes, or None for no bound.

    Raises:
        ConfigurationError: neither None nor an integer of at least 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of bytes, at least 1, or None for no bound")
    return value
