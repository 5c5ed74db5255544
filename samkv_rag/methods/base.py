"""The contract of a prefill method."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.metrics import Diagnostic
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.selection import BlockScores


@dataclass(frozen=True)
class Prefilled:
    """What decoding starts from."""

    hidden: torch.Tensor
    """``[1, 1, hidden]``, last layer, of the prompt's last token"""
    kept: torch.Tensor
    """``[tokens]``, prompt tokens whose KV is in the buffer"""
    recomputed: torch.Tensor
    """``[tokens]``, chunk tokens run through the model for this prompt"""
    diagnostics: tuple[Diagnostic, ...] = ()
    """What the method noticed on its way."""
    block_scores: BlockScores | None = None
    """By what it chose, if it chose."""


class Clock:
    """Seconds spent in named steps."""

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


class PrefillMethod(ABC):
    """Fills a KV buffer from a prompt whose chunks have cached KV."""

    name: ClassVar[str]
    reads_cache: ClassVar[bool] = True
    """Whether it needs the chunks' cached KV at all."""

    @abstractmethod
    def prefill(
        self, decoder: Decoder, layout: PromptLayout, config: SamKVConfig, buffer: KVBuffer, clock: Clock
    ) -> Prefilled:
        """Fill ``buffer`` (empty) with the KV to decode from."""
