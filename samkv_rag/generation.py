"""One generation: read the prompt, fill the KV buffer by a method, decode, count."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy

from samkv_rag.assembly import PromptAssembler, ReadPrompt
from samkv_rag.config import SamKVConfig
from samkv_rag.decoding import AnswerText, Sampling, TokenChooser, decode
from samkv_rag.diagnostics import excessive_recomputation
from samkv_rag.exceptions import ConfigurationError, PromptTooLongError
from samkv_rag.explanation import Explainer, Explanation
from samkv_rag.methods import METHODS, Clock, Prefilled, PrefillMethod
from samkv_rag.metrics import ChunkUse, Diagnostic, GenerationMetrics
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.sparse.layout import PromptLayout

_RESERVED_TOKENS = 256


@dataclass(frozen=True)
class StreamPiece:
    """A piece of an answer; the last one carries why it ended and what it cost."""

    text: str
    finish_reason: str | None = None
    metrics: GenerationMetrics | None = None
    token_ids: tuple[int, ...] = ()
    chunks: tuple[ChunkUse, ...] = ()
    explainer: Explainer | None = field(default=None, repr=False)

    def explain(self, answer: str) -> Explanation:
        """Of the last piece: what ``answer``, the text of all pieces, was read from.

        Raises:
            ConfigurationError: this is not the last piece.
        """
        if self.explainer is None or self.metrics is None:
            raise ConfigurationError(f"the piece {self.text!r} is not the last; ask that one, which has metrics")
        return self.explainer(answer, self.metrics, self.chunks)


@dataclass(frozen=True)
class GenerationResult:
    """An answer.

    ``finish_reason`` is ``"stop"`` (end of text or a stop string) or ``"length"``; ``chunks`` says of
    each chunk in the prompt which of its tokens were kept.
    """

    text: str
    finish_reason: str
    token_ids: tuple[int, ...]
    metrics: GenerationMetrics
    chunks: tuple[ChunkUse, ...]
    explainer: Explainer = field(repr=False)

    def explain(self) -> Explanation:
        """What the answer was read from: of each chunk the tokens kept, by which scores; a picture of it too."""
        return self.explainer(self.text, self.metrics, self.chunks)


def stream_answer(
    generation: Generation, tokenizer: PromptTokenizer, sampling: Sampling, end_ids: frozenset[int], model_name: str
) -> Generator[StreamPiece, None, None]:
    """Yield the answer's text piece by piece; the last piece carries metrics."""
    started = time.perf_counter()
    answer = AnswerText(tokenizer, sampling.stop)
    token_ids: list[int] = []
    finish_reason, ttft_s = "length", 0.0
    for token_id in generation.tokens(sampling):
        ttft_s = ttft_s or time.perf_counter() - started
        if token_id in end_ids:
            finish_reason = "stop"
            break
        token_ids.append(token_id)
        if piece := answer.add(token_id):
            yield StreamPiece(piece)
        if answer.stopped:
            finish_reason = "stop"
            break
    metrics = generation.metrics(len(token_ids), ttft_s, time.perf_counter() - started)
    explainer = Explainer(model_name, tokenizer)
    yield StreamPiece(answer.finish(), finish_reason, metrics, tuple(token_ids), generation.chunk_uses(), explainer)


def gather(pieces: Iterable[StreamPiece]) -> GenerationResult:
    """All pieces of an answer as one result."""
    *_, last = gathered = list(pieces)
    assert last.finish_reason is not None
    assert last.metrics is not None
    assert last.explainer is not None
    text = "".join(piece.text for piece in gathered)
    return GenerationResult(text, last.finish_reason, last.token_ids, last.metrics, last.chunks, last.explainer)


class Generation:
    """One prompt on its way to an answer. ``model_lock`` is held while the prompt is read, not after."""

    def __init__(
        self,
        decoder: Decoder,
        assembler: PromptAssembler,
        model_lock: threading.Lock,
        config: SamKVConfig,
        prompt: str,
    ) -> None:
        self._decoder = decoder
        self._assembler = assembler
        self._model_lock = model_lock
        self._config = config
        self._prompt = prompt
        self._clock = Clock()
        self._method: PrefillMethod = METHODS[config.method]
        self._fallback_reason: str | None = None
        self._layout: PromptLayout
        self._prefilled: Prefilled
        self._buffer = KVBuffer(decoder.num_layers)
        self._resident_tokens = self._resident_bytes = 0

    def tokens(self, sampling: Sampling) -> Generator[int, None, None]:
        """Yield the answer's token ids, at most as many as asked for and as the window holds.

        Raises:
            PromptTooLongError: the window holds no answer.
        """
        with self._model_lock, torch.inference_mode():
            self._layout = layout = self._read_prompt()
            limit = min(sampling.max_new_tokens, self._decoder.context_window - layout.num_tokens)
            self._buffer = buffer = KVBuffer(self._decoder.num_layers, reserve_tokens=min(limit, _RESERVED_TOKENS))
            self._prefilled = self._method.prefill(self._decoder, layout, self._config, buffer, self._clock)
            self._resident_tokens, self._resident_bytes = buffer.cache_length, buffer.nbytes
        choose = TokenChooser(sampling, self._decoder.device)
        endless = decode(self._decoder, self._prefilled.hidden, buffer, layout.num_tokens, choose)
        for _ in range(limit):
            yield next(endless)

    def nll(self, token_ids: Sequence[int]) -> float:
        """Mean negative log-likelihood, in nats a token, of ``token_ids`` as the answer to the prompt read.

        Teacher-forced behind the prompt's KV: what :meth:`tokens` decoded is cut off again.
        """
        self._buffer.truncate(self._resident_tokens)
        expected = torch.tensor(token_ids, device=self._decoder.device)
        with torch.inference_mode():
            logits = self._decoder.logits(self._hidden_before(expected))[0]
            return float(cross_entropy(logits.float(), expected))

    def _hidden_before(self, expected: torch.Tensor) -> torch.Tensor:
        """Last hidden states ``[1, tokens, hidden]``, each of the token before an ``expected`` one."""
        if len(expected) == 1:
            return self._prefilled.hidden
        position_ids = self._layout.num_tokens + torch.arange(len(expected) - 1)
        embedded = self._decoder.embed(expected[None, :-1])
        forced = self._decoder.run_layers(embedded, position_ids, CausalPass(self._buffer))
        return torch.cat((self._prefilled.hidden, forced), dim=1)

    def metrics(self, completion_tokens: int, ttft_s: float, total_s: float) -> GenerationMetrics:
        """Figures of the finished generation."""
        layout, uses_cache = self._layout, self._method.reads_cache
        hits = sum(segment.hit for segment in layout.chunks)
        missed = len(layout.chunks) - hits
        reused = sum(s.stop - s.start for s in layout.cached if s.hit)
        decode_s = total_s - ttft_s
        return GenerationMetrics(
            method=self._method.name,
            fallback_reason=self._fallback_reason,
            prompt_tokens=layout.num_tokens,
            completion_tokens=completion_tokens,
            chunk_tokens=layout.num_chunk_tokens,
            chunks_hit=hits,
            chunks_missed=missed,
            chunks_prefilled=missed if uses_cache else len(layout.chunks),
            tokens_reused=reused,
            sequence_ratio=self._share_of_chunks(self._prefilled.kept),
            recompute_ratio=self._share_of_chunks(self._prefilled.recomputed),
            kv_bytes_resident=self._resident_bytes,
            kv_bytes_full=layout.num_tokens * self._decoder.kv_bytes_per_token,
            ttft_s=ttft_s,
            decode_tokens_per_s=(completion_tokens - 1) / decode_s if completion_tokens > 1 else 0.0,
            total_s=total_s,
            phase_s=dict(self._clock.phase_s),
            diagnostics=(*self._prefilled.diagnostics, *self._excessive_recomputation(missed)),
        )

    def chunk_uses(self) -> tuple[ChunkUse, ...]:
        """What became of each chunk."""
        kept, chunks = self._prefilled.kept.cpu(), self._layout.chunks
        scored = self._prefilled.block_scores
        blocks = scored.blocks.scored(scored.scores, self._layout) if scored else [()] * len(chunks)
        return tuple(
            ChunkUse(
                chunk_key=segment.chunk_key,
                start_char=segment.start_char,
                num_tokens=segment.stop - segment.start,
                hit=segment.hit,
                kept_tokens=tuple(kept[segment.span].nonzero()[:, 0].tolist()),
                text=segment.text,
                blocks=of_chunk,
            )
            for segment, of_chunk in zip(chunks, blocks, strict=True)
        )

    def _read_prompt(self) -> PromptLayout:
        """Recognise the prompt's chunks, decide whether their caches pay, and lay out its tokens."""
        with self._clock.phase("recognise"):
            prompt = self._assembler.read(self._prompt)
        try:
            return self._lay_out(prompt)
        finally:
            self._assembler.end_hints(prompt)

    def _lay_out(self, prompt: ReadPrompt) -> PromptLayout:
        if self._method.reads_cache and (reason := self._why_full_prefill(prompt)):
            self._method, self._fallback_reason = METHODS["full_prefill"], reason
        with self._clock.phase("assemble"):
            uses_cache = self._method.reads_cache
            layout = self._assembler.with_cache(prompt) if uses_cache else self._assembler.without_cache(prompt)
        self._require_fit(layout.num_tokens)
        return layout

    def _why_full_prefill(self, prompt: ReadPrompt) -> str | None:
        if prompt.num_chunk_tokens == 0:
            return "no stored chunk stands in the prompt"
        if prompt.num_chunk_tokens < self._config.min_chunk_tokens:
            return (
                f"{prompt.num_chunk_tokens} chunk tokens in the prompt; reuse pays from "
                f"{self._config.min_chunk_tokens} (min_chunk_tokens)"
            )
        return None if prompt.has_question else "no question follows the last chunk"

    def _require_fit(self, num_tokens: int) -> None:
        window = self._decoder.context_window
        if num_tokens >= window:
            raise PromptTooLongError(
                f"the prompt has {num_tokens} tokens, the model's context window is {window} and must hold the "
                "answer too; retrieve fewer or smaller chunks"
            )

    def _excessive_recomputation(self, num_missed: int) -> list[Diagnostic]:
        """What was computed of the chunks beyond the bound, unless full prefill was asked for."""
        if not self._layout.chunks or not (self._method.reads_cache or self._fallback_reason):
            return []
        computed = self._prefilled.recomputed.clone()
        for segment in self._layout.chunks:
            if not segment.hit:
                computed[segment.span] = True
        ratio = self._share_of_chunks(computed)
        return excessive_recomputation(ratio, self._config.sequence_ratio, num_missed, self._fallback_reason)

    def _share_of_chunks(self, mask: torch.Tensor) -> float:
        """Chunk tokens in ``mask`` ÷ chunk tokens in the prompt; 1 where there are none."""
        total = self._layout.num_chunk_tokens
        return int((mask & self._layout.is_chunk).sum()) / total if total else 1.0
