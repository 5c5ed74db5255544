"""Turns a finished sequence into a result: text, metrics, and how each chunk was used."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from samkv_rag.diagnostics import excessive_recomputation
from samkv_rag.generation_result import GenerationResult
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.prompt.layout import Segment
from samkv_rag.results import Arrival, ChunkUse, Diagnostic, GenerationMetrics
from samkv_rag.runtime.refreshing import Refresher
from samkv_rag.runtime.sequence import DecodingState, ReadPrompt, Sequence


def result(sequence: Sequence, decoder: Decoder, tokenizer: PromptTokenizer, model_name: str) -> GenerationResult:
    """Return the result of a finished sequence."""
    assert sequence.read is not None
    assert sequence.state is not None
    read, state = sequence.read, sequence.state
    return GenerationResult(
        text=sequence.text,
        finish_reason=sequence.finish_reason,
        token_ids=tuple(sequence.token_ids),
        metrics=_metrics(sequence, read, state, decoder),
        chunks=_chunk_uses(read, state),
        model_name=model_name,
        question=read.prompt.question,
        reference_nll=sequence.reference_nll,
        logprobs=tuple(sequence.logprobs),
        handover=sequence.handover,
        offsets=tokenizer.chunk_offsets,
    )


def _metrics(sequence: Sequence, read: ReadPrompt, state: DecodingState, decoder: Decoder) -> GenerationMetrics:
    layout, prefilled, refresher, num_tokens = read.layout, state.prefilled, state.refresher, len(sequence.token_ids)
    num_hit = sum(segment.hit for segment in layout.chunks)
    finished_at = time.perf_counter()
    decode_s = finished_at - sequence.first_token_at
    return GenerationMetrics(
        method=read.method.name,
        fallback_reason=read.fallback_reason,
        prompt_tokens=layout.num_tokens,
        completion_tokens=num_tokens,
        chunk_tokens=layout.num_chunk_tokens,
        chunks_hit=num_hit,
        chunks_missed=len(layout.chunks) - num_hit,
        tokens_reused=layout.num_tokens_reused,
        sequence_ratio=_share_of_chunks(prefilled.retained, read),
        recompute_ratio=_share_of_chunks(prefilled.recomputed, read),
        kv_bytes_resident=state.resident_bytes,
        kv_bytes_full=decoder.kv_bytes(layout.num_tokens),
        ttft_s=sequence.first_token_at - sequence.submitted_at,
        decode_tokens_per_s=(num_tokens - 1) / decode_s if num_tokens > 1 else 0.0,
        total_s=finished_at - sequence.submitted_at,
        bytes_read=layout.bytes_read,
        phase_s=dict(sequence.clock.phase_s),
        diagnostics=(*prefilled.diagnostics, *_excessive_recomputation(sequence, read, prefilled.recomputed)),
        refreshes=len(refresher.arrivals) if refresher else 0,
        refresh_s=refresher.seconds if refresher else 0.0,
        refresh_bytes_read=refresher.bytes_read if refresher else 0,
    )


def _chunk_uses(read: ReadPrompt, state: DecodingState) -> tuple[ChunkUse, ...]:
    retained, chunks = state.prefilled.retained.cpu(), read.layout.chunks
    scored = state.prefilled.block_scores
    blocks = scored.blocks.scored(scored.scores, read.layout) if scored else [()] * len(chunks)
    uses = (
        ChunkUse(
            digest=segment.digest,
            start_char=segment.start_char,
            num_tokens=segment.num_tokens,
            hit=segment.hit,
            retained_tokens=tuple(retained[segment.span].nonzero()[:, 0].tolist()),
            text=segment.text,
            blocks=of_chunk,
            arrivals=tuple(_arrivals(state.refresher, segment)) if state.refresher else (),
        )
        for segment, of_chunk in zip(chunks, blocks, strict=True)
    )
    return tuple(sorted(uses, key=lambda use: use.start_char))


def _arrivals(refresher: Refresher, segment: Segment) -> Iterator[Arrival]:
    """Yield the tokens of a chunk that each refresh brought in."""
    for num_chars, positions in refresher.arrivals:
        tokens = positions[(positions >= segment.start) & (positions < segment.stop)] - segment.start
        if len(tokens):
            yield Arrival(num_chars, tuple(tokens.tolist()))


def _excessive_recomputation(sequence: Sequence, read: ReadPrompt, recomputed: torch.Tensor) -> list[Diagnostic]:
    """Report if more chunk tokens were computed than the method's share; full prefill has none."""
    asked = sequence.request.method
    if not read.layout.chunks or not asked.needs:
        return []
    computed, missed = recomputed.clone(), [segment for segment in read.layout.chunks if not segment.hit]
    for segment in missed:
        computed[segment.span] = True
    ratio = _share_of_chunks(computed, read)
    return excessive_recomputation(ratio, asked.computed_ratio, len(missed), read.fallback_reason)


def _share_of_chunks(mask: torch.Tensor, read: ReadPrompt) -> float:
    """Return chunk tokens in ``mask`` ÷ chunk tokens in the prompt; 1 if it has none."""
    total = read.layout.num_chunk_tokens
    return int((mask & read.layout.is_chunk).sum()) / total if total else 1.0
