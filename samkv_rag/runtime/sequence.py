"""A request on its way to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch

from samkv_rag.generation_result import GenerationResult
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.model.tokenization import PromptTokenizer, RenderedPrompt
from samkv_rag.prefill.base import Clock, Prefilled, PrefillMethod
from samkv_rag.prompt.assembly import SplitPrompt
from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.results import Piece
from samkv_rag.runtime.sampling import AnswerText, Sampling, TokenChooser

Delivery = Piece | GenerationResult | BaseException
"""What a reader gets: pieces, then a result or an error."""


@dataclass(frozen=True)
class Request:
    """What was asked."""

    prompt: RenderedPrompt | str
    method: PrefillMethod
    sampling: Sampling
    reference_ids: tuple[int, ...] = ()
    """Tokens of a reference answer whose likelihood is wanted, too."""


class Status(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    """For its prompt to be read, or for its turn."""
    RUNNING = "running"
    """Prefilled, or being so; decoding."""
    FINISHED = "finished"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt's tokens, and the method that fits them."""

    layout: PromptLayout
    method: PrefillMethod
    fallback_reason: str | None
    """Why full prefill takes the place of the method asked for."""
    prompt: SplitPrompt


@dataclass(frozen=True)
class DecodingState:
    """What a prefilled sequence decodes from."""

    prefilled: Prefilled
    buffer: KVBuffer
    max_tokens: int
    """As many as asked for and as the context window holds."""
    resident_tokens: int
    """Prompt tokens in the buffer."""
    resident_bytes: int


class Sequence:
    """A request, where it is, and what it has so far. Changed by the worker thread alone, but for :meth:`cancel`."""

    def __init__(
        self,
        request: Request,
        tokenizer: PromptTokenizer,
        device: torch.device,
        end_ids: frozenset[int],
        deliver: Callable[[Delivery], None],
    ) -> None:
        self.request = request
        self.status = Status.WAITING
        self.deliver = deliver
        """Called with every piece, then once with the result or an error; must return at once."""
        self.clock = Clock()
        self.read: ReadPrompt | None = None
        self.state: DecodingState | None = None
        self.token_ids: list[int] = []
        self.finish_reason = ""
        self.submitted_at = time.perf_counter()
        self.ready_at = self.first_token_at = 0.0
        self.cancelled = False
        self.num_readings = 0
        """How often its prompt was read: once more where a chunk was damaged in between."""
        self._answer = AnswerText(tokenizer, request.sampling.stop)
        self._choose = TokenChooser(request.sampling, device)
        self._end_ids = end_ids
        self._held_back: list[int] = []

    @property
    def text(self) -> str:
        """The answer so far, without what is held back."""
        return self._answer.text

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; 0 until it is read."""
        return self.read.layout.num_tokens if self.read else 0

    @property
    def next_position_id(self) -> int:
        """Position of the token decoded last, which runs next. Follows the whole prompt, not the shorter cache."""
        return self.num_prompt_tokens + len(self.token_ids) - 1

    def cancel(self) -> None:
        """Give up at the next step. From any thread, any number of times."""
        self.cancelled = True

    def accept(self, logits: torch.Tensor) -> None:
        """Choose the next token from ``logits`` ``[1, vocab]``, deliver what it makes certain, end where it ends."""
        assert self.state is not None
        token_id = self._choose(logits)
        self.first_token_at = self.first_token_at or time.perf_counter()
        if token_id in self._end_ids:
            self._finish("stop")
            return
        self.token_ids.append(token_id)
        self._held_back.append(token_id)
        self._deliver_text(self._answer.add(token_id))
        if self._answer.stopped:
            self._finish("stop")
        elif len(self.token_ids) >= self.state.max_tokens:
            self._finish("length")

    def _finish(self, reason: str) -> None:
        self._deliver_text(self._answer.finish())
        self.finish_reason = reason
        self.status = Status.FINISHED

    def _deliver_text(self, text: str) -> None:
        if text:
            self.deliver(Piece(text, tuple(self._held_back)))
            self._held_back.clear()
