"""Naive reuse: all cached KV retained as it is; chunks never see each other. The lower reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.prefill.base import CachedPrefill, PrefillContext, Prefilled
from samkv_rag.prefill.passes.recomputation import recompute


@dataclass(frozen=True)
class NaiveReuse(CachedPrefill):
    """Rotates keys to their places in the prompt; recomputes nothing and drops nothing."""

    name: ClassVar[str] = "naive_reuse"

    @property
    def computed_ratio(self) -> float:
        return 0.0

    def prefill(self, context: PrefillContext) -> Prefilled:
        everything = torch.ones_like(context.layout.is_chunk)
        return recompute(context, everything, ~everything)
