"""From what a generation kept, in tokens, to an explanation, in the chunks' own words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from samkv_rag.explanation.base import Block, ExplainedChunk, Explanation, Span
from samkv_rag.results import ChunkUse, GenerationMetrics
from samkv_rag.model.tokenization import PromptTokenizer

Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Explainer:
    """Explains the answers of one model. Texts are tokenised again only when it is called."""

    model_name: str
    tokenizer: PromptTokenizer

    def __call__(self, answer: str, metrics: GenerationMetrics, chunks: Iterable[ChunkUse]) -> Explanation:
        """Explain ``answer``, decoded from what was kept of ``chunks``."""
        return Explanation(
            model_name=self.model_name,
            method=metrics.method,
            fallback_reason=metrics.fallback_reason,
            answer=answer,
            sequence_ratio=metrics.sequence_ratio,
            chunks=tuple(self._explained(chunk) for chunk in chunks),
        )

    def _explained(self, chunk: ChunkUse) -> ExplainedChunk:
        offsets = self._offsets(chunk)
        return ExplainedChunk(
            text=chunk.text,
            num_tokens=chunk.num_tokens,
            hit=chunk.hit,
            kept=tuple(Span(*run, *_chars(offsets, *run)) for run in runs(chunk.kept_tokens)),
            blocks=tuple(
                Block(b.start, b.stop, *_chars(offsets, b.start, b.stop), b.score if math.isfinite(b.score) else None)
                for b in chunk.blocks
            ),
        )

    def _offsets(self, chunk: ChunkUse) -> Offsets:
        offsets = self.tokenizer.chunk_offsets(chunk.text)
        # Full prefill counts a BOS, which is no text, among the tokens of a chunk that begins the prompt.
        return [(0, 0)] * (chunk.num_tokens - len(offsets)) + offsets


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First index, and the one behind the last, of each run of neighbours in rising ``indices``."""
    start = 0
    for i, index in enumerate(indices):
        if i + 1 == len(indices) or indices[i + 1] != index + 1:
            yield indices[start], index + 1
            start = i + 1


def _chars(offsets: Offsets, start: int, stop: int) -> tuple[int, int]:
    return offsets[start][0], offsets[stop - 1][1]
