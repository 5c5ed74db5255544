"""The contract of a prefill method: from a prompt with cached chunks to a KV cache to decode from."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch

from samkv_rag.checks import require_integer, require_number
from samkv_rag.chunk_cache import SummarySpec
from samkv_rag.config import Storage
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill.passes.selection import BlockScores
from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.results import Diagnostic

Need = Literal["index", "kv"]
"""A part of a stored chunk that a method reads: what an index has, or all of it."""


class Clock:
    """Seconds spent in named phases."""

    def __init__(self) -> None:
        self.phase_s: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.phase_s[name] = self.phase_s.get(name, 0.0) + time.perf_counter() - started


@dataclass(frozen=True)
class PrefillContext:
    """The input of a method."""

    decoder: Decoder
    layout: PromptLayout
    buffer: KVBuffer
    """Empty; the method fills it with the KV to decode from."""
    spec: SummarySpec
    """How the engine summarised chunks at ingestion."""
    clock: Clock
    question: str = ""
    """The user's last message without the chunks and what is before them."""
    asked_ids: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Its token ids if it stands before the chunks, where nothing of it sees them; else none."""


@dataclass(frozen=True)
class Prefilled:
    """The output of a method, from which decoding starts."""

    hidden: torch.Tensor
    """``[1, 1, hidden]``, last layer, of the prompt's last token"""
    retained: torch.Tensor
    """``[tokens]``, prompt tokens whose KV is in the buffer"""
    recomputed: torch.Tensor
    """``[tokens]``, chunk tokens run through the model for this prompt"""
    diagnostics: tuple[Diagnostic, ...] = ()
    """Problems that the method noticed."""
    block_scores: BlockScores | None = None
    """The scores that the method selected by, if it selects."""
    layout: PromptLayout | None = None
    """The prompt with its chunks reordered, to which the masks and the buffer refer; None: not reordered."""


@dataclass(frozen=True)
class PrefillMethod(ABC):
    """Fills a KV buffer from a prompt.

    A method is a frozen dataclass. Its fields are its options, checked in ``__post_init__``. A new method is one
    subclass, and one line in ``prefill/__init__.py`` or an entry point of the group ``samkv.methods``.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> frozenset[Need]:
        """Parts of stored chunks that the method reads; empty: it uses no cache."""
        return frozenset({"kv"})

    def require(self, storage: Storage, decoder: Decoder) -> None:
        """Check that the method works with the engine's chunks and model.

        Raises:
            ConfigurationError: it reads more of a chunk than an index has, or needs what the model lacks.
        """
        if storage == "index" and (more := sorted(self.needs - {"index"})):
            raise ConfigurationError(
                f"method {self.name!r} with these options needs a chunk's {' and '.join(more)}, storage='index' keeps "
                "what Scout() reads; open the engine with storage='full', or use Scout and leave out recompute, "
                "recompute_ratio, recompute_view, update, score_layers and scouted"
            )

    @abstractmethod
    def prefill(self, context: PrefillContext) -> Prefilled:
        """Fill ``context.buffer`` with the KV to decode from."""

    @property
    def computed_ratio(self) -> float:
        """Largest share of the chunk tokens that the method runs through the model, in [0, 1]."""
        return 1.0

    @property
    def is_exact(self) -> bool:
        """Whether the method equals full prefill; then former turns of a chat are computed again, too."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return name and options as plain values, for ``resolve_method``."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class CachedPrefill(PrefillMethod):
    """Base of the methods that read cached KV."""

    min_chunk_tokens: int = 256
    """A prompt with fewer chunk tokens takes full prefill, which is as fast."""

    def __post_init__(self) -> None:
        require_integer("min_chunk_tokens", self.min_chunk_tokens, 0)


@dataclass(frozen=True)
class RecomputingPrefill(CachedPrefill):
    """Base of the methods that retain all cached KV and recompute some of it."""

    recompute_ratio: float = 0.15
    """Hard cap on chunk tokens recomputed ÷ chunk tokens in the prompt, in (0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("recompute_ratio", self.recompute_ratio, 1e-6, 1.0)

    @property
    def computed_ratio(self) -> float:
        return self.recompute_ratio
