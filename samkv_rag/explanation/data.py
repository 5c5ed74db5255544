"""Explanations: which tokens of which chunks an answer was decoded from, and their scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from math import inf, isfinite
from typing import Any, NamedTuple

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.results import ChunkUse


@dataclass(frozen=True)
class Range:
    """Tokens ``start`` to ``stop`` of a chunk, or characters ``start_char`` to ``stop_char`` of its text."""

    start: int
    stop: int
    start_char: int
    stop_char: int


@dataclass(frozen=True)
class Block(Range):
    """Tokens that the selection scored together."""

    score: float | None
    """Comparable within one explanation only. None if not eligible, whatever the budget."""


@dataclass(frozen=True)
class Arrived(Range):
    """Tokens that a refresh added while the answer was written."""

    answer_chars: int
    """Characters of the answer that had been written by then."""


class Span(NamedTuple):
    """A retained part of a source, ``source[start_char:stop_char]``."""

    start_char: int
    stop_char: int
    score: float | None
    """Score of its best block; None if none was scored, as for anchors and full prefill."""

    @property
    def strength(self) -> float:
        """Sort key: the score, or -inf."""
        return -inf if self.score is None else self.score


@dataclass(frozen=True)
class ExplainedChunk:
    """The retained parts of one chunk."""

    text: str
    digest: str
    """SHA-256 of the text, hex."""
    num_tokens: int
    hit: bool
    """Whether its KV came from the store; else it was computed for this prompt."""
    retained: tuple[Range, ...]
    """Runs of tokens retained for the question, in order."""
    blocks: tuple[Block, ...]
    """The scored blocks, in order. Anchors are always retained and in no block; full prefill scores nothing."""
    source: str = ""
    """Name of the document; empty if unknown."""
    arrivals: tuple[Arrived, ...] = ()
    """Runs of tokens that refreshes added, in order of time."""

    @property
    def num_retained(self) -> int:
        """Tokens retained."""
        return sum(run.stop - run.start for run in self.retained)


@dataclass(frozen=True, repr=False)
class Explanation:
    """What an answer was read from, chunk by chunk in the prompt's order.

    ``GenerationResult.explain()`` returns one. Notebooks display it, and ``to_dict`` turns it into plain values for
    JSON. It has the question and the chunks' texts: protect it as you protect the documents.
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

    def __repr__(self) -> str:  # may be logged, so it must not show the documents
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
        """Return a copy with the names of documents; ``sources`` maps chunk texts to names.

        White space around a text does not count. Chunks that are not in ``sources`` stay as they are.
        """
        named = {text.strip(): source for text, source in sources.items()}
        chunks = (replace(chunk, source=named.get(chunk.text.strip(), chunk.source)) for chunk in self.chunks)
        return replace(self, chunks=tuple(chunks))

    def cite(self, sources: Iterable[str]) -> list[list[Span]]:
        """Return the retained spans of each source text, strongest first.

        Tokens added by refreshes are included. Adjacent spans are merged. A source that is not a chunk, or of which
        nothing was retained, has no spans. White space around a text does not count.
        """
        found: dict[str, list[Span]] = {}
        for chunk in self.chunks:
            found.setdefault(chunk.text.strip(), []).extend(_spans(chunk))
        cited = []
        for text in sources:
            ahead, spans = len(text) - len(text.lstrip()), _merged(found.get(text.strip(), ()))
            cited.append([Span(ahead + start, ahead + stop, score) for start, stop, score in spans])
        return cited

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Explanation:
        """Return the explanation of which ``values`` is the ``to_dict``.

        Raises:
            ConfigurationError: ``values`` is not the result of ``to_dict``.
        """
        try:
            return cls(**{**values, "chunks": tuple(map(_chunk, values["chunks"]))})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"not an explanation: {error}; pass what Explanation.to_dict, or a call with explain=True, returned"
            ) from error

    def to_html(self, *, fragment: bool = False) -> str:
        """Return a self-contained page, or with ``fragment`` one element for another page."""
        from samkv_rag.explanation.render import render  # late, because it imports jinja2

        return render(self, is_page=not fragment)

    def _repr_html_(self) -> str:
        return self.to_html(fragment=True)


def explained_chunk(use: ChunkUse, offsets: Sequence[tuple[int, int]]) -> ExplainedChunk:
    """Turn the use of a chunk into ranges of its text; ``offsets`` are start and stop character of each token."""
    # If a chunk begins the prompt, full prefill counts the BOS, which is not text, among its tokens.
    offsets = [(0, 0)] * (use.num_tokens - len(offsets)) + [*offsets]

    def place(start: int, stop: int) -> tuple[int, int, int, int]:
        return start, stop, offsets[start][0], offsets[stop - 1][1]

    retained = tuple(Range(*place(*run)) for run in _runs(use.retained_tokens))
    blocks = tuple(Block(*place(start, stop), score if isfinite(score) else None) for start, stop, score in use.blocks)
    arrivals = tuple(Arrived(*place(*run), chars) for chars, tokens in use.arrivals for run in _runs(tokens))
    return ExplainedChunk(use.text, use.digest, use.num_tokens, use.hit, retained, blocks, arrivals=arrivals)


def _spans(chunk: ExplainedChunk) -> Iterator[Span]:
    """Yield each run of tokens that was retained at any time, with the best score of the blocks it overlaps."""
    for run in (*chunk.retained, *chunk.arrivals):
        blocks = (block for block in chunk.blocks if block.start < run.stop and run.start < block.stop)
        scores = [block.score for block in blocks if block.score is not None]
        if run.start_char < run.stop_char:
            yield Span(run.start_char, run.stop_char, max(scores, default=None))


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Merge adjacent spans, and return them strongest first."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span[:2]):
        if merged and span.start_char <= merged[-1].stop_char:
            last = merged.pop()
            score = max(last, span, key=lambda one: one.strength).score
            span = Span(last.start_char, max(last.stop_char, span.stop_char), score)
        merged.append(span)
    return sorted(merged, key=lambda span: span.strength, reverse=True)


def _runs(tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each run of adjacent ``tokens``."""
    for _, pairs in groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0]):
        run = [token for _, token in pairs]
        yield run[0], run[-1] + 1


def _chunk(values: Mapping[str, Any]) -> ExplainedChunk:
    kinds = {"retained": Range, "blocks": Block, "arrivals": Arrived}
    ranges = {name: tuple(kind(**run) for run in values[name]) for name, kind in kinds.items() if name in values}
    return ExplainedChunk(**{**values, **ranges})
