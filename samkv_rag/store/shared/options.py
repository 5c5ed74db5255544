"""Values that users give a store, checked before anything is opened or made."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any, TypeGuard

from samkv_rag.exceptions import ConfigurationError

_MAX_SECONDS = 10**9
"""About thirty years; what waits for threads and sockets takes no more."""
_OWN_NAMES = ("refresh_s", "timeout_s", "url")


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


def require_timeout(name: str, value: object) -> float:
    """Return how long something may take, in seconds.

    Raises:
        ConfigurationError: not a number above 0, or more than thirty years.
    """
    if not _is_number(value) or not 0 < value <= _MAX_SECONDS:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of seconds, > 0 and <= {_MAX_SECONDS:,}")
    return value


def require_age(name: str, value: object) -> float:
    """Return how old something may be, in seconds.

    Raises:
        ConfigurationError: not a number of at least 0, or more than thirty years.
    """
    if not _is_number(value) or not 0 <= value <= _MAX_SECONDS:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of seconds, >= 0 and <= {_MAX_SECONDS:,}")
    return value


def require_folder(name: str, value: object) -> str:
    """Return a folder's path, which need not be there.

    Raises:
        ConfigurationError: not a path, an empty one, or another kind of location.
    """
    path = fspath(value) if isinstance(value, (str, PathLike)) else None
    if not isinstance(path, str) or not path.strip() or "\0" in path or path == ":memory:" or "://" in path:
        raise ConfigurationError(f"{name} is {value!r}; it must be the path of a folder")
    return path


def require_url(value: object) -> str:
    """Return a URL.

    Raises:
        ConfigurationError: not a text, or an empty one.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigurationError(f"url is {value!r}; it must be a text such as s3://bucket/kv or redis://host:6379")
    return value


def require_storage_options(value: object) -> dict[str, Any]:
    """Return options for the client of a URL; None: none. They may be secret, so no message shows them.

    Raises:
        ConfigurationError: not a dictionary with names, or one of the names is a store's own.
    """
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ConfigurationError(
            f"storage_options is of type {type(value).__name__}; it must be a dictionary of names and values"
        )
    if own := sorted(set(value) & set(_OWN_NAMES)):
        raise ConfigurationError(
            f"{', '.join(own)} stands in storage_options, a dictionary for the client of the URL; give it beside them"
        )
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
