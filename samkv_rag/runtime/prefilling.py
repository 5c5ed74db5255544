"""Reads a sequence's prompt and prefills it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch.nn.functional import cross_entropy

from samkv_rag.chunk_cache import SummarySpec
from samkv_rag.exceptions import PromptTooLongError
from samkv_rag.handover import hand_over
from samkv_rag.model.decoder import Decoder, causal_rows
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import CachedPrefill, FullPrefill, PrefillContext, PrefillMethod, SparsePrefill
from samkv_rag.prompt.assembly import PromptAssembler, SplitPrompt
from samkv_rag.runtime.guiding import Matcher
from samkv_rag.runtime.refreshing import Refresher
from samkv_rag.runtime.sequence import DecodingState, ReadPrompt, Sequence

_RESERVED_TOKENS = 256
"""Initial room for the answer in a buffer."""


def read_prompt(
    assembler: PromptAssembler, sequence: Sequence, matcher: Matcher | None, context_window: int
) -> ReadPrompt:
    """Recognise the prompt's chunks, decide whether their caches pay, and lay out its tokens."""
    clock, method, reason = sequence.clock, sequence.request.method, None
    with clock.phase("recognise"):
        prompt = assembler.split(sequence.request.prompt)
    if method.needs and (reason := _why_full_prefill(prompt, method)):
        method = FullPrefill()
    try:
        _require_room(prompt.num_chunk_tokens, context_window)  # before any chunk is computed
        with clock.phase("assemble"):
            if method.needs:
                layout = assembler.with_cache(
                    prompt,
                    with_history=not method.is_exact,
                    whole=method.needs != {"index"},
                    in_memory=sequence.num_readings > 1,
                )
            else:
                layout = assembler.without_cache(prompt)
    finally:
        assembler.library.end_announcements(span.text_digest for span in prompt.spans if span.text_digest)
    _require_room(layout.num_tokens, context_window)
    asked = [] if prompt.question_follows else assembler.tokenizer.chunk_ids(f"\n\n{prompt.question}")
    return ReadPrompt(layout, method, reason, prompt, matcher, torch.tensor(asked, dtype=torch.int64))


def _require_room(num_tokens: int, context_window: int) -> None:
    if num_tokens >= context_window:
        raise PromptTooLongError(
            f"the prompt has {num_tokens} tokens, the model's context window is {context_window} and must hold the "
            "answer too; retrieve fewer or smaller chunks"
        )


def _why_full_prefill(prompt: SplitPrompt, method: PrefillMethod) -> str | None:
    min_tokens = method.min_chunk_tokens if isinstance(method, CachedPrefill) else 0
    if prompt.num_chunk_tokens == 0:
        return "no stored chunk stands in the prompt"
    if prompt.num_chunk_tokens < min_tokens:
        return f"{prompt.num_chunk_tokens} chunk tokens in the prompt; reuse pays from {min_tokens} (min_chunk_tokens)"
    if not prompt.question or prompt.spans[-1].text_digest:
        return "no question follows the last chunk"
    return None


def prefill(decoder: Decoder, sequence: Sequence, spec: SummarySpec) -> list[Sequence]:
    """Fill the sequence's buffer by its method, accept the first token of every answer, and return the answers.

    Decoding only reads the buffer, so the chunks' readers are released, except for refreshes.
    """
    assert sequence.read is not None
    layout, method, question = sequence.read.layout, sequence.read.method, sequence.read.prompt.question
    wanted = 1 if sequence.request.handover else sequence.request.sampling.max_new_tokens
    max_tokens = min(wanted, decoder.context_window - layout.num_tokens)
    buffer = KVBuffer(decoder.num_layers, reserve_tokens=min(max_tokens, _RESERVED_TOKENS))
    asked = sequence.read.asked_ids
    prefilled = method.prefill(PrefillContext(decoder, layout, buffer, spec, sequence.clock, question, asked))
    buffer.narrow(decoder.windows)
    layout = prefilled.layout or layout
    refresher = None
    if isinstance(method, SparsePrefill) and prefilled.block_scores and not sequence.request.handover:
        every = method.refreshes_every(decoder)
        refresher = Refresher(decoder, method, layout, prefilled, buffer, every) if every else None
    layout.release()
    sequence.read = replace(sequence.read, layout=layout)
    logits = decoder.logits(prefilled.hidden)[:, -1]
    answers = sequence.start(DecodingState(prefilled, buffer, max_tokens, buffer.nbytes, refresher))
    for answer in answers:
        answer.accept(logits)
    if sequence.request.handover and sequence.finish_reason == "length":
        sequence.handover = hand_over(decoder, buffer, layout.token_ids, sequence.token_ids[0], sequence.end_ids)
    if expected := sequence.request.reference_ids:
        nll = _reference_nll(decoder, prefilled.hidden, buffer, layout.num_tokens, expected, refresher)
        for answer in answers:
            answer.reference_nll = nll
    return answers


def _reference_nll(
    decoder: Decoder,
    hidden: torch.Tensor,
    buffer: KVBuffer,
    num_prompt_tokens: int,
    reference_ids: tuple[int, ...],
    refresher: Refresher | None,
) -> float:
    """Return the mean negative log-likelihood of a reference answer, in nats per token, teacher-forced.

    ``hidden`` is ``[1, 1, hidden]`` of the prompt's last token, ``buffer`` the prompt's KV. Refreshes happen as they
    would while the reference was decoded.
    """
    expected, buffer = torch.tensor(reference_ids), buffer.copy()
    refresher = refresher and refresher.over(buffer)
    due = {number for number in range(1, len(expected)) if refresher and refresher.is_due(number)}
    alone = {*due, *(number - 1 for number in due)}  # tokens that refresh, so that those before see what they saw
    for start, stop in pairwise(sorted({0, len(expected) - 1, *alone})):
        if refresher:
            rows = refresher.rows(reference_ids[:stop], stop - start, 0)
        else:
            rows = causal_rows(buffer, reference_ids[start:stop], num_prompt_tokens + start)
        forced = decoder.run_layers(decoder.embed(rows.token_ids[None]), rows.position_ids, rows.attend)
        hidden = torch.cat((hidden, forced[:, start - stop :]), dim=1)
    return float(cross_entropy(decoder.logits(hidden)[0].float().cpu(), expected))
