"""samkv_rag: answer from the cached KV of retrieved chunks, sparsely and selectively recomputed.

The names below are imported on first use, so that ``import samkv_rag`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samkv_rag.config import EngineConfig as EngineConfig
    from samkv_rag.engine import SamKVEngine as SamKVEngine
    from samkv_rag.exceptions import DamagedCatalogWarning as DamagedCatalogWarning
    from samkv_rag.exceptions import DamagedChunkWarning as DamagedChunkWarning
    from samkv_rag.exceptions import SamKVError as SamKVError
    from samkv_rag.explanation import Explanation as Explanation
    from samkv_rag.generation_result import GenerationResult as GenerationResult
    from samkv_rag.grammar import Grammar as Grammar
    from samkv_rag.results import ChunkUse as ChunkUse
    from samkv_rag.results import Diagnostic as Diagnostic
    from samkv_rag.results import GenerationMetrics as GenerationMetrics
    from samkv_rag.results import IngestionEstimate as IngestionEstimate
    from samkv_rag.results import IngestionReport as IngestionReport
    from samkv_rag.results import Piece as Piece
    from samkv_rag.results import TokenLogprob as TokenLogprob
    from samkv_rag.store import Store as Store
    from samkv_rag.store import open_store as open_store

__version__ = "0.1.0"

_HOMES = {
    "ChunkUse": "results",
    "DamagedCatalogWarning": "exceptions",
    "DamagedChunkWarning": "exceptions",
    "Diagnostic": "results",
    "EngineConfig": "config",
    "Explanation": "explanation",
    "GenerationMetrics": "results",
    "GenerationResult": "generation_result",
    "Grammar": "grammar",
    "IngestionEstimate": "results",
    "IngestionReport": "results",
    "Piece": "results",
    "SamKVEngine": "engine",
    "SamKVError": "exceptions",
    "Store": "store",
    "TokenLogprob": "results",
    "open_store": "store",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
