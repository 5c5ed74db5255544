"""A request on its way to an answer."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event

import torch

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.generation_result import GenerationResult
from samkv_rag.handover import Handover
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.tokenization import PromptTokenizer, RenderedPrompt
from samkv_rag.prefill.base import Clock, Prefilled, PrefillMethod
from samkv_rag.prompt.assembly import SplitPrompt
from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.results import Piece, TokenLogprob
from samkv_rag.runtime.guiding import Matcher
from samkv_rag.runtime.refreshing import Refresher
from samkv_rag.runtime.sampling import AnswerText, Sampling, TokenChooser, token_logprob

Delivery = Piece | GenerationResult | BaseException | None
"""Sent to a reader: pieces, then a result or an error; None if the reader gave up."""
Choose = Callable[[torch.Tensor], int]
"""Chooses the next token's id from logits ``[1, vocab]``."""


@dataclass(frozen=True)
class Request:
    """A question and its options."""

    prompt: RenderedPrompt
    method: PrefillMethod
    sampling: Sampling
    reference_ids: tuple[int, ...] = ()
    """Tokens of a reference answer, whose likelihood is computed."""
    choose: Choose | None = None
    """Replaces ``sampling``'s choice."""
    handover: bool = False
    """Whether another engine decodes all but the first token."""


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt's tokens and the method to prefill them."""

    layout: PromptLayout
    method: PrefillMethod
    fallback_reason: str | None
    """Why full prefill replaces the method asked for."""
    prompt: SplitPrompt
    matcher: Matcher | None
    """For the answer's grammar, at its beginning."""
    asked_ids: torch.Tensor
    """Token ids of a question that stands before the chunks; else none."""


@dataclass(frozen=True)
class DecodingState:
    """The state that a prefilled sequence decodes from."""

    prefilled: Prefilled
    buffer: KVBuffer
    max_tokens: int
    """Longest answer, as asked for and as fits in the context window."""
    resident_bytes: int
    """Bytes of the prompt's tokens in the buffer."""
    refresher: Refresher | None


class Sequence:
    """A request with its state and its answer so far. Only the worker thread changes it, except by :meth:`cancel`."""

    deliver: Callable[[Delivery], None]
    """Called with every piece, then once with the result or an error; must not block. Its reader sets it."""

    def __init__(self, request: Request, tokenizer: PromptTokenizer, end_ids: frozenset[int]) -> None:
        self.request = request
        self.clock = Clock()
        self.read: ReadPrompt | None = None
        self.state: DecodingState | None = None
        self.finish_reason = ""
        """Empty until the answer is finished."""
        self.reference_nll: float | None = None
        """Of the request's reference answer, in nats per token."""
        self.handover: Handover | None = None
        self.end_ids = end_ids
        self.submitted_at = self.ready_at = self.first_token_at = 0.0
        self.num_readings = 0
        """How often the prompt was read; it is read again if a chunk proved damaged."""
        self._tokenizer = tokenizer
        # Shared by all answers to the request.
        self._cancelled = Event()
        self._results: dict[int, GenerationResult] = {}

    @property
    def text(self) -> str:
        """The answer so far, as far as it is certain."""
        return self._answer.text

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 until it has been read."""
        return self.read.layout.num_tokens if self.read else 0

    @property
    def cancelled(self) -> bool:
        """Whether the request was cancelled, with all its answers."""
        return self._cancelled.is_set()

    @property
    def next_position_id(self) -> int:
        """Position of the last token, which runs next. It follows the whole prompt, not the shorter cache."""
        return self.num_prompt_tokens + len(self.token_ids) - 1

    def cancel(self) -> None:
        """End the computation at the next step. Thread-safe; may be called any number of times."""
        self._cancelled.set()

    def fail(self, error: BaseException) -> None:
        """End the computation and deliver an error."""
        self.cancel()
        self.deliver(error)
        # Last: a step that runs meanwhile in the worker's thread fails without a state, and the first error counts.
        self.state = None

    def start(self, state: DecodingState) -> list[Sequence]:
        """Start the request's answers, this one first; the others decode from copies of the prompt's KV."""
        self.state = state
        answers = [self, *(copy.copy(self) for _ in range(self.request.sampling.n - 1))]
        for index, answer in enumerate(answers):
            if index:
                buffer = state.buffer.copy()
                answer.state = replace(state, buffer=buffer, refresher=state.refresher and state.refresher.over(buffer))
            answer._begin(index)
        return answers

    def conclude(self, result: GenerationResult) -> None:
        """Deliver the result once all answers to the request are finished."""
        self._results[self._index] = result
        if len(self._results) == self.request.sampling.n:
            first, *others = (self._results[index] for index in sorted(self._results))
            self.deliver(replace(first, others=tuple(others)))

    def accept(self, logits: torch.Tensor) -> None:
        """Choose the next token from ``logits`` ``[1, vocab]``, deliver the text that it makes certain, or finish."""
        assert self.state is not None
        token_id = (self.request.choose or self._choose)(logits)
        if type(token_id) is not int or not 0 <= token_id < logits.shape[1]:
            raise ConfigurationError(f"choose returned {token_id!r}; it must be a token id, below {logits.shape[1]}")
        self.first_token_at = self.first_token_at or time.perf_counter()
        if token_id in self.end_ids:
            self._finish("stop")
            return
        self.token_ids.append(token_id)
        if (sampling := self.request.sampling).logprobs:
            self.logprobs.append(token_logprob(token_id, logits, sampling.top_logprobs, self._tokenizer))
        self._deliver_text(self._answer.add(token_id))
        if self._answer.stopped or self._choose.complete:
            self._finish("stop")
        elif len(self.token_ids) >= self.state.max_tokens:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        self._deliver_text(self._answer.finish(), last=True)
        self.finish_reason = reason

    def _begin(self, index: int) -> None:
        assert self.read is not None
        sampling, layout, matcher = self.request.sampling, self.read.layout, self.read.matcher
        penalised = layout.token_ids.tolist() if sampling.repetition_penalty != 1 else ()
        self._index = index
        self._answer = AnswerText(self._tokenizer, sampling.stop)
        self._choose = TokenChooser(sampling, layout.device, penalised, matcher and matcher.copy(), index)
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._num_delivered = 0

    def _deliver_text(self, text: str, last: bool = False) -> None:
        held_back = slice(self._num_delivered, len(self.token_ids))
        logprobs = tuple(self.logprobs[held_back])
        if text or (last and logprobs):
            self.deliver(Piece(text, tuple(self.token_ids[held_back]), self._index, logprobs))
            self._num_delivered = held_back.stop
