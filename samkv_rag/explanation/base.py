"""An explanation: which tokens of which chunks an answer was decoded from, and why these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prompt.recognition import text_digest


@dataclass(frozen=True)
class Span:
    """Tokens ``start`` to ``stop`` of a chunk, which are characters ``start_char`` to ``stop_char`` of its text."""

    start: int
    stop: int
    start_char: int
    stop_char: int

    @property
    def num_tokens(self) -> int:
        """How many tokens it has."""
        return self.stop - self.start


@dataclass(frozen=True)
class Block(Span):
    """Tokens that the selection scored together."""

    score: float | None
    """Comparable within one explanation only; None: not eligible, whatever the budget."""


@dataclass(frozen=True)
class ExplainedChunk:
    """What was kept of one chunk."""

    text: str
    num_tokens: int
    hit: bool
    """Its KV came from the store; otherwise it was computed for this prompt."""
    kept: tuple[Span, ...]
    """Runs of kept tokens, in order; neighbours are joined."""
    blocks: tuple[Block, ...]
    """What the selection scored, in order. Anchors, kept unasked, are in none; full prefill scores nothing."""
    source: str = ""
    """Where the text is from, if anyone said so."""

    @property
    def key(self) -> str:
        """SHA-256 of the text, hex."""
        return text_digest(self.text)

    @property
    def num_kept(self) -> int:
        """Tokens kept."""
        return sum(span.num_tokens for span in self.kept)


@dataclass(frozen=True, repr=False)
class Explanation:
    """What an answer was read from, chunk by chunk in the prompt's order.

    ``GenerationResult.explain()`` makes one. It shows itself in a notebook, and is plain JSON by
    :meth:`to_dict`. It holds the chunks' texts: treat it as you treat the documents.
    """

    model_name: str
    method: str
    fallback_reason: str | None
    """Why full prefill ran instead of the method asked for."""
    answer: str
    sequence_ratio: float
    """Chunk tokens kept ÷ chunk tokens in the prompt."""
    chunks: tuple[ExplainedChunk, ...]

    def __repr__(self) -> str:
        """Short, and without the documents' texts."""
        return f"<Explanation: {self.num_kept} of {self.num_tokens} tokens kept of {len(self.chunks)} chunks>"

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_kept(self) -> int:
        """Tokens kept of all chunks."""
        return sum(chunk.num_kept for chunk in self.chunks)

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
            chunks = tuple(_chunk(chunk) for chunk in values["chunks"])
            return cls(**{**values, "chunks": chunks})
        except (KeyError, TypeError) as error:
            raise ConfigurationError(
                f"no explanation: {error}; give what Explanation.to_dict returned, such as "
                'response_metadata["explanation"] of a call with explain=True'
            ) from error

    def to_html(self) -> str:
        """Return a whole page that needs nothing else: no script, no font, no network."""
        from samkv_rag.explanation.html import page

        return page(self)

    def to_png(self, file: str | PathLike[str] | None = None) -> bytes:
        """Return the picture as a PNG image, and write it to ``file`` if given.

        Raises:
            ConfigurationError: matplotlib is not installed.
        """
        from samkv_rag.explanation.png import image

        return image(self, file)

    def _repr_html_(self) -> str:
        from samkv_rag.explanation.html import fragment

        return fragment(self)


def _chunk(values: Mapping[str, Any]) -> ExplainedChunk:
    kept = tuple(Span(**span) for span in values["kept"])
    blocks = tuple(Block(**block) for block in values["blocks"])
    return ExplainedChunk(**{**values, "kept": kept, "blocks": blocks})
