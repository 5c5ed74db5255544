"""The fields of a chat model that say which engine it has, and the engine they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from samkv_rag.config import SamKVConfig
from samkv_rag.serving.handle import EngineHandle
from samkv_rag.serving.options import ENGINE_OPTIONS, revealed, without_password

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine

ENGINE_FIELDS = ("model_name", *ENGINE_OPTIONS)


def handle_for(fields: Mapping[str, Any]) -> EngineHandle:
    """Return the promise of the engine that a chat model's ``fields`` describe."""
    origin = {name: fields[name] for name in ENGINE_FIELDS}
    return EngineHandle(lambda: _load(origin), origin)


def identity_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's fields as they may be shown; the secret, on which no answer depends, is left out."""
    shown = {name: fields[name] for name in ENGINE_FIELDS if name != "store_secret"}
    return shown | {"store": without_password(fields["store"]), "config": asdict(fields["config"] or SamKVConfig())}


def ratio_of_config(fields: Mapping[str, Any]) -> float:
    """Return the share of chunk tokens kept that the policy in ``fields`` says."""
    return (fields["config"] or SamKVConfig()).sequence_ratio


def _load(origin: Mapping[str, Any]) -> SamKVEngine:
    from samkv_rag import SamKVEngine  # late: it imports torch

    options = {name: revealed(origin[name]) for name in ENGINE_OPTIONS}
    return SamKVEngine.from_pretrained(origin["model_name"], **options)
