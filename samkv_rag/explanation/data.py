"""An explanation: which tokens of which chunks an answer was decoded from, and by which scores."""

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
class Arrived(Range):
    """Tokens that a refresh brought in while the answer was written."""

    answer_chars: int
    """Characters of the answer that were written by then."""


class Span(NamedTuple):
    """A part of a source that was retained, ``source[start_char:stop_char]``."""

    start_char: int
    stop_char: int
    score: float | None
    """That of its best block; None: nothing of it was scored, as anchors and full prefill are not."""

    @property
    def strength(self) -> float:
        """To sort by: the score, or less than any."""
        return -inf if self.score is None else self.score


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
    """Runs of retained tokens, in order."""
    blocks: tuple[Block, ...]
    """What the selection scored, in order. Anchors are always retained and in no block; full prefill scores nothing."""
    source: str = ""
    """Where the text is from; empty where nobody said."""
    arrivals: tuple[Arrived, ...] = ()
    """What refreshes brought in, in their order; ``retained`` is what the question did."""

    @property
    def num_retained(self) -> int:
        """Tokens retained."""
        return sum(run.stop - run.start for run in self.retained)


@dataclass(frozen=True, repr=False)
class Explanation:
    """What an answer was read from, chunk by chunk in the prompt's order.

    ``GenerationResult.explain()`` makes one. A notebook draws it, and ``to_dict`` turns it into plain values
    for JSON. It holds the question and the chunks' texts: protect it as you protect the documents.
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

    def __repr__(self) -> str:  # is printed and logged, so without the documents' texts
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
        """Return a copy that names where chunks are from; ``sources`` maps chunk texts to names.

        White space around a text does not count. Chunks that ``sources`` does not name stay as they are.
        """
        named = {text.strip(): source for text, source in sources.items()}
        chunks = (replace(chunk, source=named.get(chunk.text.strip(), chunk.source)) for chunk in self.chunks)
        return replace(self, chunks=tuple(chunks))

    def cite(self, sources: Iterable[str]) -> list[list[Span]]:
        """For the text of each source what was retained of it, in its characters, strongest first.

        What refreshes brought in is among it. Spans that touch are one. A source that is no chunk, or of which nothing
        was retained, has none. White space around a text does not count.
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
        """Return the explanation that ``to_dict`` turned into ``values``.

        Raises:
            ConfigurationError: ``values`` is not what ``to_dict`` returns.
        """
        try:
            return cls(**{**values, "chunks": tuple(map(_chunk, values["chunks"]))})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"not an explanation: {error}; pass what Explanation.to_dict, or a call with explain=True, returned"
            ) from error

    def to_html(self, *, fragment: bool = False) -> str:
        """Return a page that needs nothing else, or as a ``fragment`` one element to stand in another page."""
        from samkv_rag.explanation.render import render  # late: it brings jinja2

        return render(self, is_page=not fragment)

    def _repr_html_(self) -> str:
        return self.to_html(fragment=True)


def explained_chunk(use: ChunkUse, offsets: Sequence[tuple[int, int]]) -> ExplainedChunk:
    """Turn what was retained of a chunk, in tokens, into runs of its text.

    Args:
        use: what became of the chunk.
        offsets: of each of its tokens the first character, and the one behind the last.
    """
    # Full prefill counts a BOS, which is not text, among the tokens of a chunk that begins the prompt.
    offsets = [(0, 0)] * (use.num_tokens - len(offsets)) + [*offsets]
    retained = tuple(Range(*run) for run in _runs(use.retained_tokens, offsets))
    blocks = tuple(
        Block(start, stop, offsets[start][0], offsets[stop - 1][1], score if isfinite(score) else None)
        for start, stop, score in use.blocks
    )
    arrivals = (Arrived(*run, chars) for chars, tokens in use.arrivals for run in _runs(tokens, offsets))
    return ExplainedChunk(use.text, use.digest, use.num_tokens, use.hit, retained, blocks, arrivals=tuple(arrivals))


def _spans(chunk: ExplainedChunk) -> Iterator[Span]:
    """Each run of tokens that was retained at any time, with the score of the best block that it has tokens of."""
    for run in (*chunk.retained, *chunk.arrivals):
        blocks = (block for block in chunk.blocks if block.start < run.stop and run.start < block.stop)
        scores = [block.score for block in blocks if block.score is not None]
        if run.start_char < run.stop_char:
            yield Span(run.start_char, run.stop_char, max(scores, default=None))


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans that touch as one, strongest first."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda span: span[:2]):
        if merged and span.start_char <= merged[-1].stop_char:
            last = merged.pop()
            score = max(last, span, key=lambda one: one.strength).score
            span = Span(last.start_char, max(last.stop_char, span.stop_char), score)
        merged.append(span)
    return sorted(merged, key=lambda span: span.strength, reverse=True)


def _runs(tokens: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Neighbouring ``tokens`` as the fields of a :class:`Range`."""
    for _, pairs in groupby(enumerate(tokens), key=lambda pair: pair[1] - pair[0]):
        run = [token for _, token in pairs]
        yield run[0], run[-1] + 1, offsets[run[0]][0], offsets[run[-1]][1]


def _chunk(values: Mapping[str, Any]) -> ExplainedChunk:
    kinds = {"retained": Range, "blocks": Block, "arrivals": Arrived}
    ranges = {name: tuple(kind(**run) for run in values[name]) for name, kind in kinds.items() if name in values}
    return ExplainedChunk(**{**values, **ranges})
