"""From a prompt to a KV cache to decode from: one contract, one method a file, and the registry of methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Any

from samkv_rag.checks import refuse_unknown
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prefill.base import CachedPrefill, Clock, PrefillContext, Prefilled, PrefillMethod
from samkv_rag.prefill.cacheblend import CacheBlend
from samkv_rag.prefill.epic import Epic
from samkv_rag.prefill.full_prefill import FullPrefill
from samkv_rag.prefill.naive_reuse import NaiveReuse
from samkv_rag.prefill.prophetkv import ProphetKV
from samkv_rag.prefill.samkv import SamKV
from samkv_rag.prefill.scout import Scout
from samkv_rag.prefill.sparse import Selected, SparsePrefill

__all__ = [
    "CacheBlend",
    "CachedPrefill",
    "Clock",
    "Epic",
    "FullPrefill",
    "NaiveReuse",
    "PrefillContext",
    "PrefillMethod",
    "Prefilled",
    "ProphetKV",
    "SamKV",
    "Scout",
    "Selected",
    "SparsePrefill",
    "method_classes",
    "resolve_method",
]
_OWN: tuple[type[PrefillMethod], ...] = (Scout, SamKV, FullPrefill, NaiveReuse, CacheBlend, Epic, ProphetKV)


def method_classes() -> dict[str, type[PrefillMethod]]:
    """Return every known method by name: ours, then those that other packages declare as entry points."""
    found: dict[str, type[PrefillMethod]] = {cls.name: cls for cls in _OWN}
    for entry_point in entry_points(group="samkv.methods"):
        if entry_point.name not in found:  # installing a package cannot replace ours
            found[entry_point.name] = entry_point.load()
    return found


def resolve_method(method: PrefillMethod | str | Mapping[str, Any]) -> PrefillMethod:
    """Return a method from itself, its name, or a mapping of its name and options.

    A mapping is what :meth:`PrefillMethod.to_dict` returns: ``{"name": "scout", "sequence_ratio": 0.1}``.

    Raises:
        ConfigurationError: there is no such method or option, or a value is out of range.
    """
    if isinstance(method, PrefillMethod):
        return method
    options = {"name": method} if isinstance(method, str) else dict(method) if isinstance(method, Mapping) else {}
    name = options.pop("name", None)
    known = method_classes()
    if not isinstance(name, str) or name not in known:
        near = get_close_matches(str(name), known, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(
            f"method is {method!r}; {guess}it must be a PrefillMethod, the name of one ({', '.join(known)}), "
            "or a mapping with that name and its options"
        )
    refuse_unknown(options, [field.name for field in fields(known[name])])
    return known[name](**options)
