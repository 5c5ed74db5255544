"""The fields of a chat model that say which engine it has, and the engine they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from samkv_rag.config import EngineConfig
from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.options import ENGINE_OPTIONS, secret_value
from samkv_rag.store.unreachable import without_secrets

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine

ENGINE_FIELDS = ("model_name", *(name for name in ENGINE_OPTIONS if name != "method"))


def handle_for(fields: Mapping[str, Any]) -> EngineHandle:
    """Return the promise of the engine that a chat model's ``fields`` describe."""
    origin = {name: fields[name] for name in ENGINE_FIELDS}
    return EngineHandle(lambda: _load(origin), origin)


def identity_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's fields as they may be shown; secrets, on which no answer depends, are left out."""
    shown = {name: fields[name] for name in ENGINE_FIELDS if name not in ("store_secret", "token")}
    return shown | {"store": without_secrets(fields["store"]), "config": asdict(fields["config"] or EngineConfig())}


def _load(origin: Mapping[str, Any]) -> SamKVEngine:
    from samkv_rag import SamKVEngine  # late: it imports torch

    options = {name: secret_value(origin[name]) for name in ENGINE_FIELDS if name != "model_name"}
    return SamKVEngine.from_pretrained(origin["model_name"], **options)
