"""samkv_rag: answers from the cached KV of retrieved chunks, sparse and selectively recomputed.

Names are imported on first use, so ``import samkv_rag`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samkv_rag.config import EngineConfig
    from samkv_rag.engine import SamKVEngine
    from samkv_rag.exceptions import DamagedCatalogWarning, DamagedChunkWarning, SamKVError
    from samkv_rag.explanation import Explanation
    from samkv_rag.generation_result import GenerationResult
    from samkv_rag.grammar import Grammar
    from samkv_rag.results import (
        ChunkUse,
        Diagnostic,
        GenerationMetrics,
        IngestionEstimate,
        IngestionReport,
        Piece,
        TokenLogprob,
    )
    from samkv_rag.store import Store, open_store

__version__ = "0.1.0"

_MODULES = {
    "DamagedCatalogWarning": "exceptions",
    "DamagedChunkWarning": "exceptions",
    "EngineConfig": "config",
    "Explanation": "explanation",
    "GenerationResult": "generation_result",
    "Grammar": "grammar",
    "SamKVEngine": "engine",
    "SamKVError": "exceptions",
    "Store": "store",
    "open_store": "store",
}
"""Modules of the names that are not in ``results``."""
__all__ = [
    "ChunkUse",
    "DamagedCatalogWarning",
    "DamagedChunkWarning",
    "Diagnostic",
    "EngineConfig",
    "Explanation",
    "GenerationMetrics",
    "GenerationResult",
    "Grammar",
    "IngestionEstimate",
    "IngestionReport",
    "Piece",
    "SamKVEngine",
    "SamKVError",
    "Store",
    "TokenLogprob",
    "__version__",
    "open_store",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'results')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
