"""The parts of results: metrics, the use of each chunk, and pieces of the answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class ScoredBlock(NamedTuple):
    """A run of a chunk's tokens that was scored, and retained or dropped, together."""

    start: int
    """Index of its first token in the chunk."""
    stop: int
    """Index after its last token."""
    score: float
    """Score of the selection, comparable within one answer only. -inf: not eligible, whatever the budget."""


class Arrival(NamedTuple):
    """Tokens of a chunk that a refresh added."""

    answer_chars: int
    """Characters of the answer that had been written by then."""
    tokens: tuple[int, ...]
    """Indices in the chunk."""


@dataclass(frozen=True)
class ChunkUse:
    """How one chunk of the prompt was used."""

    digest: str
    """SHA-256 of its text, hex."""
    start_char: int
    """Start of the chunk in the rendered prompt."""
    num_tokens: int
    hit: bool
    """Whether its KV came from the store; else it was computed on the spot."""
    retained_tokens: tuple[int, ...]
    """Indices in the chunk of the tokens whose KV was kept for decoding, before any refresh."""
    text: str = field(default="", repr=False)
    blocks: tuple[ScoredBlock, ...] = field(default=(), repr=False)
    """The scored blocks, in order; empty for methods that do not select. Anchors are in no block."""
    arrivals: tuple[Arrival, ...] = field(default=(), repr=False)
    """Tokens that were added while the answer was written, with ``refresh_tokens``."""


@dataclass(frozen=True)
class Diagnostic:
    """A reason why an answer is worse or slower than requested, without being an error."""

    name: str
    """One of the names in :mod:`samkv_rag.diagnostics`."""
    message: str
    """The value, the limit and the remedy."""


@dataclass(frozen=True)
class GenerationMetrics:
    """Metrics of one generation. Sizes are in bytes. Times are in seconds and include the work on other requests.

    ``sequence_ratio`` is the share of the prompt's chunk tokens that was retained, ``recompute_ratio`` the share that
    was run through the model again; both are 1 under full prefill. ``kv_bytes_resident`` is the KV of the prompt that
    decoding reads, ``kv_bytes_full`` that of full prefill. ``tokens_reused`` counts prompt tokens whose KV was read
    instead of computed, including the cached beginning of the prompt. ``bytes_read`` counts bytes of stored chunks;
    the first read of a chunk in a process includes what its checks read.
    """

    method: str
    fallback_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    chunk_tokens: int
    chunks_hit: int
    chunks_missed: int
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
    refreshes: int = 0
    """How often the retained tokens were selected again."""
    refresh_s: float = 0.0
    """Seconds of selecting again, and of reading what comes in."""
    refresh_bytes_read: int = 0
    """Bytes of cached KV that the refreshes of all answers to the prompt have read by then."""

    @property
    def chunks_total(self) -> int:
        """Chunks recognised in the prompt."""
        return self.chunks_hit + self.chunks_missed

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class TokenLogprob:
    """The log probability of a token of an answer."""

    token_id: int
    text: str
    """A part of a character becomes a replacement character."""
    logprob: float
    """Natural logarithm of the model's probability, before temperature, penalty and grammar."""
    top: tuple[TokenLogprob, ...] = ()
    """The ``top_logprobs`` likeliest tokens at this place."""


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed answer."""

    text: str
    token_ids: tuple[int, ...] = ()
    """Tokens since the previous piece; some of their text may come later."""
    index: int = 0
    """Number of the answer, of ``n``."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of its tokens, with ``logprobs=True``."""


@dataclass(frozen=True)
class IngestionEstimate:
    """The cost of an ingestion, estimated before anything is computed."""

    num_chunks: int
    """Chunks that are not stored yet."""
    num_tokens: int
    num_bytes: int
    """Stored size."""

    @property
    def bytes_per_token(self) -> float:
        """0 if there is nothing to compute."""
        return self.num_bytes / max(1, self.num_tokens)


@dataclass(frozen=True)
class IngestionReport:
    """The result of an ingestion."""

    num_added: int
    num_reused: int
    num_skipped: int
    """Chunks too short for a cache; they are prefilled as ordinary text."""
    num_tokens: int
    """Tokens computed, without reused chunks."""
    elapsed_s: float
    num_bytes: int = 0
    """Bytes written."""
