"""Names of the documents that chunks come from, separate for each index that shares a chunk store."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote


def source_names(id_scope: str, ids: Iterable[str]) -> list[str]:
    """Return the engine's sources for the ``ids`` of an index; no two scopes share a source."""
    prefix = _prefix(id_scope)
    return [prefix + identifier for identifier in ids]


def ids_of(id_scope: str, sources: Iterable[str]) -> list[str]:
    """Return the ids of one scope from ``sources`` of any scopes."""
    prefix = _prefix(id_scope)
    return [source.removeprefix(prefix) for source in sources if source.startswith(prefix)]


def _prefix(id_scope: str) -> str:
    return f"{quote(id_scope, safe='')}/"
