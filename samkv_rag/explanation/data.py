"""An explanation: which tokens of which chunks an answer was decoded from, and by which scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.results import ChunkUse, GenerationResult


@dataclass(frozen=True)
class Range:
    """Tokens ``start`` to ``stop`` of a chunk, which are characters ``start_char`` to ``stop_char`` of its text."""

    start: int
    stop: int
    start_char: int
    stop_char: int


@dataclass(frozen=True)
class Block(Range):
    """Tokens that the selection scored together."""

    score: float | None
    """Comparable within one explanation only. None: not eligible, whatever the budget."""


@dataclass(frozen=True)
class ExplainedChunk:
    """What was retained of one chunk."""

    text: str
    digest: str
    """SHA-256 of the text, hex."""
    num_tokens: int
    hit: bool
    """Its KV came from the store; otherwise it was computed for this prompt."""
    retained: tuple[Range, ...]
    """Runs of retained tokens, in order; neighbours are joined."""
    blocks: tuple[Block, ...]
    """What the selection scored, in order. Anchors, retained unasked, are in none; full prefill scores nothing."""
    source: str = ""
    """Where the text is from, if anyone said so."""

    @property
    def num_retained(self) -> int:
        """Tokens retained."""
        return sum(run.stop - run.start for run in self.retained)


@dataclass(frozen=True, repr=False)
class Explanation:
    """What an answer was read from, chunk by chunk in the prompt's order.

    ``GenerationResult.explain()`` makes one. It shows itself in a notebook, and is plain JSON by
    :meth:`to_dict`. It holds the question and the chunks' texts: treat it as you treat the documents.
    """

    model_name: str
    method: str
    fallback_reason: str | None
    """Why full prefill ran instead of the method asked for."""
    question: str
    answer: str
    sequence_ratio: float
    """Chunk tokens retained ÷ chunk tokens in the prompt."""
    chunks: tuple[ExplainedChunk, ...]

    def __repr__(self) -> str:
        """Short, and without the documents' texts."""
        return f"<Explanation: {self.num_retained} of {self.num_tokens} tokens retained of {len(self.chunks)} chunks>"

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_retained(self) -> int:
        """Tokens retained of all chunks."""
        return sum(chunk.num_retained for chunk in self.chunks)

    def with_sources(self, sources: Mapping[str, str]) -> Explanation:
        """Return a copy that says where chunks are from; ``sources`` maps chunk texts to names.

        White space around a text is not part of the chunk. Chunks that it does not name stay as they are.
        """
        named = {text.strip(): source for text, source in sources.items()}
        chunks = (replace(chunk, source=named.get(chunk.text.strip(), chunk.source)) for chunk in self.chunks)
        return replace(self, chunks=tuple(chunks))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Explanation:
        """Return the explanation that :meth:`to_dict` wrote.

        Raises:
            ConfigurationError: ``values`` is something else.
        """
        try:
            return cls(**{**values, "chunks": tuple(_chunk(chunk) for chunk in values["chunks"])})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"not an explanation: {error}; give what Explanation.to_dict returned, of a call with explain=True"
            ) from error

    def to_html(self) -> str:
        """Return a whole page that needs nothing else: no script, no font, no network."""
        from samkv_rag.explanation.render import page  # late: it imports jinja2

        return page(self)

    def _repr_html_(self) -> str:
        from samkv_rag.explanation.render import fragment

        return fragment(self)


def explain(result: GenerationResult) -> Explanation:
    """Turn what a generation retained, in tokens, into an explanation in the chunks' own words."""
    return Explanation(
        model_name=result.model_name,
        method=result.metrics.method,
        fallback_reason=result.metrics.fallback_reason,
        question=result.question,
        answer=result.text,
        sequence_ratio=result.metrics.sequence_ratio,
        chunks=tuple(_explained(use, result.offsets(use.text)) for use in result.chunks),
    )


def _explained(use: ChunkUse, offsets: Sequence[tuple[int, int]]) -> ExplainedChunk:
    # Full prefill counts a BOS, which is no text, among the tokens of a chunk that begins the prompt.
    offsets = [(0, 0)] * (use.num_tokens - len(offsets)) + list(offsets)
    chars = lambda start, stop: (offsets[start][0], offsets[stop - 1][1])  # noqa: E731
    return ExplainedChunk(
        text=use.text,
        digest=use.digest,
        num_tokens=use.num_tokens,
        hit=use.hit,
        retained=tuple(Range(*run, *chars(*run)) for run in _runs(use.retained_tokens)),
        blocks=tuple(
            Block(b.start, b.stop, *chars(b.start, b.stop), b.score if math.isfinite(b.score) else None)
            for b in use.blocks
        ),
    )


def _runs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First index, and the one behind the last, of each run of neighbours in rising ``indices``."""
    start = 0
    for i, index in enumerate(indices):
        if i + 1 == len(indices) or indices[i + 1] != index + 1:
            yield indices[start], index + 1
            start = i + 1


def _chunk(values: Mapping[str, Any]) -> ExplainedChunk:
    retained = tuple(Range(**run) for run in values["retained"])
    blocks = tuple(Block(**block) for block in values["blocks"])
    return ExplainedChunk(**{**values, "retained": retained, "blocks": blocks})
