"""Base of the sparse methods: select within a budget, recompute the selection, drop the rest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from samkv_rag.checks import require_bool, require_choice, require_integer, require_number
from samkv_rag.config import Storage
from samkv_rag.diagnostics import cache_underflow
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.decoder import Decoder
from samkv_rag.prefill.base import CachedPrefill, PrefillContext, Prefilled
from samkv_rag.prefill.passes.plan import View
from samkv_rag.prefill.passes.planned_pass import TextStates
from samkv_rag.prefill.passes.recomputation import recompute
from samkv_rag.prefill.passes.selection import Anchors, BlockScores, Budget, plan_budget
from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.results import Diagnostic

Update = Literal["overwrite", "fusion"]
_AUTO_REFRESH_TOKENS = 8


@dataclass(frozen=True)
class Selected:
    """The selection: a ``[tokens]`` mask of the chunk tokens to retain, and how it came about."""

    tokens: torch.Tensor
    block_scores: BlockScores | None = None
    layout: PromptLayout | None = None
    """The prompt with its chunks reordered, to which ``tokens`` refers; None: not reordered."""
    text: TextStates | None = None
    """The prompt's text as far as the selection has computed it; None: it is computed from the bottom."""
    diagnostics: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True)
class SparsePrefill(CachedPrefill):
    """Retains at most ``sequence_ratio`` of the chunk tokens, and all other tokens.

    Args:
        sequence_ratio: hard cap on chunk tokens retained ÷ chunk tokens in the prompt, in (0, 1]. At 1, without
            recompute_ratio, everything is recomputed from the bottom, which equals full prefill.
        recompute: run retained tokens through the model again, so that chunks see each other.
        recompute_ratio: hard cap on chunk tokens recomputed ÷ chunk tokens in the prompt, in (0, 1]. Below
            ``sequence_ratio``, the best-scored retained tokens are recomputed. None: all of them.
        recompute_view: what recomputed tokens attend to: the ``"retained"`` tokens; these and all tokens of their
            ``"chunk"``; or ``"all"`` tokens before them.
        update: recomputed KV replaces the cached (``"overwrite"``), or is mixed with it (``"fusion"``).
        fusion_theta: weight of the recomputed KV in a fusion, in [0, 1].
        refresh_tokens: each of the answer's first n tokens, and every n-th after them, selects again, and the blocks
            that it and the question attend to replace others. None: the retained tokens stay for the whole answer.
            Refused for models with windows. ``"auto"``: 8 on a CPU, None where it would be refused.
        revise_tokens: how many of the answer's last tokens run again, over what is retained then, when something comes
            in. (Retrospective Sparse Attention, arXiv 2508.09001, completes their outputs instead.)

    Raises:
        ConfigurationError: a value is out of range.
    """

    sequence_ratio: float = 0.15
    recompute: bool = True
    recompute_ratio: float | None = None
    recompute_view: View = "retained"
    update: Update = "overwrite"
    fusion_theta: float = 0.9
    refresh_tokens: int | Literal["auto"] | None = None
    revise_tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("sequence_ratio", self.sequence_ratio, 1e-6, 1.0)
        require_bool("recompute", self.recompute)
        if self.recompute_ratio is not None:
            require_number("recompute_ratio", self.recompute_ratio, 1e-6, 1.0)
        require_choice("recompute_view", self.recompute_view, get_args(View))
        require_choice("update", self.update, get_args(Update))
        require_number("fusion_theta", self.fusion_theta, 0.0, 1.0)
        if self.must_refresh:
            require_integer("refresh_tokens", self.refresh_tokens, 1)
        require_integer("revise_tokens", self.revise_tokens, 0)

    def require(self, storage: Storage, decoder: Decoder) -> None:
        super().require(storage, decoder)
        if self.must_refresh and set(decoder.windows) != {None}:
            raise ConfigurationError(
                f"refresh_tokens is {self.refresh_tokens}, and layers of the model see a window of the text, which "
                "moves with the answer anyway; leave it out"
            )

    @property
    def must_refresh(self) -> bool:
        """Whether refreshes were asked for, so that an answer without them would be another."""
        return self.refresh_tokens not in ("auto", None)

    def refreshes_every(self, decoder: Decoder) -> int | None:
        """Return how many tokens of the answer lie between refreshes; None: there are none."""
        if self.refresh_tokens != "auto":
            return self.refresh_tokens
        # A device would have to read the scoring layers' keys from the host each time.
        is_possible = set(decoder.windows) == {None} and decoder.device.type == "cpu"
        return _AUTO_REFRESH_TOKENS if is_possible else None

    @property
    def computed_ratio(self) -> float:
        if not self.recompute:
            return 0.0
        return self.sequence_ratio if self.recompute_ratio is None else min(self.recompute_ratio, self.sequence_ratio)

    @property
    def is_exact(self) -> bool:
        return self.computed_ratio == 1 and self.update == "overwrite"

    @abstractmethod
    def select(self, context: PrefillContext, budget: Budget) -> Selected:
        """Choose the chunk tokens to retain: the anchors and others, at most ``budget.num_tokens`` in all."""

    @abstractmethod
    def anchors(self, context: PrefillContext) -> Anchors:
        """Return how many of a chunk's first and last tokens are always retained."""

    def prefill(self, context: PrefillContext) -> Prefilled:
        with context.clock.phase("select"):
            selected = self._select_within_budget(context)
        layout = selected.layout or context.layout
        prefilled = recompute(
            replace(context, layout=layout),
            retained=selected.tokens | ~layout.is_chunk,
            recomputed=self._recomputed(layout, selected),
            view=self.recompute_view,
            fusion_theta=self.fusion_theta if self.update == "fusion" else None,
            text=selected.text,
        )
        return replace(
            prefilled, diagnostics=selected.diagnostics, block_scores=selected.block_scores, layout=selected.layout
        )

    def _select_within_budget(self, context: PrefillContext) -> Selected:
        if self.sequence_ratio == 1 and not 0 < self.computed_ratio < 1:
            return Selected(context.layout.is_chunk)
        wanted = self.anchors(context)
        budget = plan_budget(context.layout, self.sequence_ratio, wanted)
        shrunk = cache_underflow(budget.num_tokens, len(context.layout.chunks), wanted, budget.anchors)
        selected = self.select(context, budget)
        return replace(selected, diagnostics=(*shrunk, *selected.diagnostics))

    def _recomputed(self, layout: PromptLayout, selected: Selected) -> torch.Tensor:
        """Return which of the retained chunk tokens are recomputed, ``[tokens]``."""
        if not self.recompute:
            return torch.zeros_like(selected.tokens)
        if self.computed_ratio == self.sequence_ratio or selected.block_scores is None:
            return selected.tokens
        blocks, scores = selected.block_scores
        return selected.tokens & blocks.best_within(scores, int(self.computed_ratio * layout.num_chunk_tokens + 1e-6))
