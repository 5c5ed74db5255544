"""Names of what chunks come from, kept apart where several indexes share one chunk store."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote


def source_names(namespace: str, ids: Iterable[str]) -> list[str]:
    """The sources under which an engine knows ``ids`` of an index; no two namespaces share one."""
    prefix = _prefix(namespace)
    return [prefix + identifier for identifier in ids]


def ids_of(namespace: str, sources: Iterable[str]) -> list[str]:
    """The ids of a namespace among ``sources``, which may be those of many."""
    prefix = _prefix(namespace)
    return [source.removeprefix(prefix) for source in sources if source.startswith(prefix)]


def _prefix(namespace: str) -> str:
    return f"{quote(namespace, safe='')}/"
