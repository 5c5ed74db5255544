"""What a call reports: what became of each chunk, what it cost, the pieces of the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class ScoredBlock(NamedTuple):
    """A run of a chunk's tokens that was scored, and retained or dropped, together."""

    start: int
    """Index, within the chunk, of its first token."""
    stop: int
    """Index behind its last token."""
    score: float
    """What the selection gave it; only comparable within one answer. -inf: not eligible, whatever the budget."""


class Arrival(NamedTuple):
    """Tokens of a chunk that a refresh brought in."""

    answer_chars: int
    """Characters of the answer that were written by then."""
    tokens: tuple[int, ...]
    """Indices within the chunk."""


@dataclass(frozen=True)
class ChunkUse:
    """What became of one chunk that stood in the prompt."""

    digest: str
    """SHA-256 of its text, hex."""
    start_char: int
    """Where the chunk begins in the rendered prompt."""
    num_tokens: int
    hit: bool
    """Its KV came from the store; otherwise it was computed on the spot."""
    retained_tokens: tuple[int, ...]
    """Indices, within the chunk, of the tokens whose KV stays for decoding, until a refresh exchanges them."""
    text: str = field(default="", repr=False)
    blocks: tuple[ScoredBlock, ...] = field(default=(), repr=False)
    """What the selection scored, in order; none under methods that select nothing. Anchors are in no block."""
    arrivals: tuple[Arrival, ...] = field(default=(), repr=False)
    """What came in while the answer was written, with ``refresh_tokens``."""


@dataclass(frozen=True)
class Diagnostic:
    """Something that makes an answer worse or dearer than was asked for, though it is no error."""

    name: str
    """One of those in :mod:`samkv_rag.diagnostics`."""
    message: str
    """The value, the limit and the remedy, in words."""


@dataclass(frozen=True)
class GenerationMetrics:
    """Figures of one generation. Sizes in bytes; times in seconds, those of other requests meanwhile included.

    ``sequence_ratio`` and ``recompute_ratio`` are the shares of the prompt's chunk tokens that were retained, and that
    were run through the model again; both are 1 under full prefill. ``kv_bytes_resident`` is what decoding reads for
    the prompt, ``kv_bytes_full`` what full prefill would hold. ``tokens_reused`` counts prompt tokens whose stored KV
    was read instead of computed, those of the prompt's exactly cached beginning included; ``bytes_read`` is what was
    read of stored chunks, where a process reads one for the first time with what checking it takes.
    """

    method: str
    fallback_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    chunk_tokens: int
    chunks_hit: int
    chunks_missed: int
    chunks_prefilled: int
    tokens_reused: int
    sequence_ratio: float
    recompute_ratio: float
    kv_bytes_resident: int
    kv_bytes_full: int
    ttft_s: float
    decode_tokens_per_s: float
    total_s: float
    bytes_read: int = 0
    phase_s: dict[str, float] = field(default_factory=dict)
    """Seconds of the phases before the first token: recognise, assemble, wait, then prefill or select and recompute."""
    diagnostics: tuple[Diagnostic, ...] = ()
    """What went otherwise than asked for."""
    refreshes: int = 0
    """How often the answer selected again what is retained."""
    refresh_s: float = 0.0
    refresh_bytes_read: int = 0
    """Cached KV that the refreshes read."""

    @property
    def chunks_total(self) -> int:
        """Chunks recognised in the prompt."""
        return self.chunks_hit + self.chunks_missed

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token of an answer was."""

    token_id: int
    text: str
    """Half a character is a replacement character."""
    logprob: float
    """Natural logarithm of its probability by the model alone, before temperature, penalty and grammar."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest in its place, as many as ``top_logprobs`` asks for."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer as it is written."""

    text: str
    token_ids: tuple[int, ...] = ()
    """Tokens since the piece before; some of their text may still be held back."""
    index: int = 0
    """Which of the ``n`` answers it is of."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of its tokens, where ``logprobs`` asks for them."""


@dataclass(frozen=True)
class IngestionEstimate:
    """What ingesting texts would take, before any of it is computed."""

    num_chunks: int
    """Those that are not stored yet."""
    num_tokens: int
    num_bytes: int
    """At rest."""

    @property
    def bytes_per_token(self) -> float:
        """0 where there is nothing to compute."""
        return self.num_bytes / max(1, self.num_tokens)


@dataclass(frozen=True)
class IngestionReport:
    """What one ingestion did."""

    num_added: int
    num_reused: int
    num_skipped: int
    """Chunks too short to be worth a cache; they are prefilled as ordinary text."""
    num_tokens: int
    """Tokens computed; reused chunks cost none."""
    elapsed_s: float
    num_bytes: int = 0
    """Written for the chunks added."""
