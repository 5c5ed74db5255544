"""Names of what chunks come from, kept apart where several indexes share one chunk store."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote


def source_names(id_scope: str, ids: Iterable[str]) -> list[str]:
    """The sources under which an engine knows ``ids`` of an index; no two scopes share one."""
    prefix = _prefix(id_scope)
    return [prefix + identifier for identifier in ids]


def ids_of(id_scope: str, sources: Iterable[str]) -> list[str]:
    """The ids of a scope among ``sources``, which may be those of many."""
    prefix = _prefix(id_scope)
    return [source.removeprefix(prefix) for source in sources if source.startswith(prefix)]


def _prefix(id_scope: str) -> str:
    return f"{quote(id_scope, safe='')}/"
