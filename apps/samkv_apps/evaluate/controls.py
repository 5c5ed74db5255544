"""Controls: what a method must beat before its figures mean anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from samkv_rag.generation_result import GenerationResult
from samkv_rag.prefill import PrefillContext, Scout, Selected
from samkv_rag.prefill.passes.selection import Blocks, BlockScores, Budget, anchor_mask

RANDOM_TOKENS, NO_CONTEXT, SPANS_AS_TEXT = "random_tokens", "no_context", "spans_as_text"
SAME_TTFT, MORE_CHUNKS = "fewer_chunks_same_ttft", "more_chunks"
CONTROLS = {
    RANDOM_TOKENS: "scout with its blocks drawn at random",
    NO_CONTEXT: "the prompt without its chunks, in full prefill",
    SPANS_AS_TEXT: "full prefill of what scout retains, written out as text; the time of choosing it is not counted",
    SAME_TTFT: (
        "full prefill of the chunks nearest to the question, of as many tokens as it reads in scout's time to the "
        "first token on the case: in proportion to full prefill's time, corrected by the time of one trial"
    ),
    MORE_CHUNKS: (
        "scout over as many of the corpus's nearest chunks as it reads in full prefill's time to the first token on "
        "the case: in proportion to the time of one trial over all of them"
    ),
}
TEXT_CONTROLS = (NO_CONTEXT, SPANS_AS_TEXT, SAME_TTFT)
"""Those that full prefill answers, from other text."""


@dataclass(frozen=True)
class RandomTokens(Scout):
    """`scout` with blocks drawn at random: places, anchors, blocks, budget and recomputation are the same."""

    name: ClassVar[str] = RANDOM_TOKENS

    def select(self, context: PrefillContext, budget: Budget) -> Selected:
        layout, _ = self.place(context)
        anchors, blocks = anchor_mask(layout, budget.anchors), Blocks(layout, budget.anchors, self.block_tokens)
        drawn = torch.Generator().manual_seed(int(layout.token_ids.sum()))  # equal prompts, equal draws
        scores = torch.rand(blocks.num_blocks, generator=drawn).to(layout.device)
        retained = anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum()))
        return Selected(retained, BlockScores(blocks, scores), layout)


def retained_texts(result: GenerationResult) -> list[list[str]]:
    """The runs of text that were retained of each chunk that stood in the prompt."""
    explained = result.explain().chunks
    return [[chunk.text[run.start_char : run.stop_char] for run in chunk.retained] for chunk in explained]


def spans_as_text(result: GenerationResult) -> list[str]:
    """What was retained of each chunk as one text, gaps marked; chunks of which nothing was are left out."""
    return [" … ".join(run.strip() for run in runs) for runs in retained_texts(result) if runs]


def answer_retained(answers: Sequence[str], retained: Sequence[Sequence[str]], chunks: Sequence[str]) -> float | None:
    """1 if one of ``answers`` stands whole in a retained run, else 0; None where none stands in ``chunks``."""
    if not _holds(chunks, answers):
        return None
    return float(any(_holds(runs, answers) for runs in retained))


def _holds(texts: Sequence[str], answers: Sequence[str]) -> bool:
    return any(answer.casefold() in text.casefold() for text in texts for answer in answers)
