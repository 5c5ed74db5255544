"""The fields of a chat model that say which engine it has, and the engine they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samkv_rag.config import SamKVConfig
from samkv_rag.serving.handle import EngineHandle
from samkv_rag.serving.options import ENGINE_OPTIONS

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine

ENGINE_FIELDS = ("model_name", *ENGINE_OPTIONS)


def handle_for(fields: Mapping[str, Any]) -> EngineHandle:
    """Return the promise of the engine that a chat model's ``fields`` describe."""
    origin = {name: fields[name] for name in ENGINE_FIELDS}
    return EngineHandle(lambda: _load(origin), origin)


def ratio_of_config(fields: Mapping[str, Any]) -> float:
    """Return the share of chunk tokens kept that the policy in ``fields`` says."""
    return (fields["config"] or SamKVConfig()).sequence_ratio


def _load(origin: Mapping[str, Any]) -> SamKVEngine:
    from samkv_rag import SamKVEngine  # late: it imports torch

    options = {name: origin[name] for name in ENGINE_OPTIONS}
    return SamKVEngine.from_pretrained(origin["model_name"], **options)
