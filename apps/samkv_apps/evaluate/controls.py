"""Controls: methods that a good method must beat."""

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
    RANDOM_TOKENS: "scout with randomly drawn blocks",
    NO_CONTEXT: "full prefill of the prompt without its chunks",
    SPANS_AS_TEXT: "full prefill of the text that scout retains; the time to choose it is not counted",
    SAME_TTFT: (
        "full prefill of the chunks nearest to the question, as many as it reads in scout's time to the first token "
        "on the case, estimated from full prefill's time and corrected by one trial"
    ),
    MORE_CHUNKS: (
        "scout over the corpus's nearest chunks, as many as it reads in full prefill's time to the first token on "
        "the case, estimated from one trial over all of them"
    ),
}
TEXT_CONTROLS = (NO_CONTEXT, SPANS_AS_TEXT, SAME_TTFT)
"""Controls that give full prefill other text."""


@dataclass(frozen=True)
class RandomTokens(Scout):
    """`scout` with randomly drawn blocks. Positions, anchors, block sizes, budget and recomputation are the same."""

    name: ClassVar[str] = RANDOM_TOKENS

    def select(self, context: PrefillContext, budget: Budget) -> Selected:
        layout, _ = self.place(context)
        anchors, blocks = anchor_mask(layout, budget.anchors), Blocks(layout, budget.anchors, self.block_tokens)
        drawn = torch.Generator().manual_seed(int(layout.token_ids.sum()))  # equal prompts draw the same blocks
        scores = torch.rand(blocks.num_blocks, generator=drawn).to(layout.device)
        retained = anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum()))
        return Selected(retained, BlockScores(blocks, scores), layout)


def retained_texts(result: GenerationResult) -> list[list[str]]:
    """Return the retained runs of text of each chunk in the prompt."""
    explained = result.explain().chunks
    return [[chunk.text[run.start_char : run.stop_char] for run in chunk.retained] for chunk in explained]


def spans_as_text(result: GenerationResult) -> list[str]:
    """Join the retained runs of each chunk with a mark for gaps; skip chunks without any."""
    return [" … ".join(run.strip() for run in runs) for runs in retained_texts(result) if runs]


def answer_retained(answers: Sequence[str], retained: Sequence[Sequence[str]], chunks: Sequence[str]) -> float | None:
    """Return 1 if a retained run contains one of ``answers``, else 0; None if ``chunks`` contain none."""
    if not _holds(chunks, answers):
        return None
    return float(any(_holds(runs, answers) for runs in retained))


def _holds(texts: Sequence[str], answers: Sequence[str]) -> bool:
    return any(answer.casefold() in text.casefold() for text in texts for answer in answers)
