"""How the next token is chosen, and how token ids become text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from samkv_rag.checks import require_bool, require_integer, require_number
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.grammar import Grammar
from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.results import TokenLogprob
from samkv_rag.runtime.guiding import Matcher

MIN_TEMPERATURE = 1e-3
"""Below this, logits divided by the temperature overflow float32."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_TOP_LOGPROBS = 20
_LEAST_DECODED, _MOST_DECODED = 16, 128
"""How many of an answer's last tokens are decoded for the next one's text. All of them would take ever longer."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop; ``AnswerOptions`` documents each field."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, 1)
        require_number("temperature", self.temperature, 0)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise ConfigurationError(
                f"temperature is {self.temperature!r}; it must be 0 (greedy) or at least {MIN_TEMPERATURE:g}"
            )
        require_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ConfigurationError("top_p is 0; it must be above 0 and at most 1")
        require_integer("top_k", self.top_k, 0)
        require_number("min_p", self.min_p, 0, 1)
        require_number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        require_integer("n", self.n, 1)
        require_bool("logprobs", self.logprobs)
        require_integer("top_logprobs", self.top_logprobs, 0, _MAX_TOP_LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise ConfigurationError(f"top_logprobs is {self.top_logprobs} and logprobs is False; pass logprobs=True")
        if not isinstance(self.grammar, Grammar | None):
            raise ConfigurationError(
                f"grammar is a {type(self.grammar).__name__}; it must be a Grammar, such as Grammar.json_schema(schema)"
            )
        if wrong := [stop for stop in self.stop if not isinstance(stop, str) or not stop]:
            raise ConfigurationError(f"stop holds {wrong[0]!r}; it must be made of texts that are not empty")
        if self.seed is not None:
            require_integer("seed", self.seed, -(2**63), 2**64 - self.n)  # the n-th answer's seed is seed + n


class TokenChooser:
    """Chooses the tokens of one answer, each from logits ``[1, vocab]``.

    It uses the processors of transformers' ``generate``, in their order, with a grammar's mask after the penalty for
    repetition, which counts ``prompt_ids``, too. ``index``, the number of the answer in its request, is added to the
    seed.
    """

    def __init__(
        self,
        sampling: Sampling,
        device: torch.device,
        prompt_ids: Sequence[int],
        matcher: Matcher | None,
        index: int,
    ) -> None:
        self._greedy = sampling.temperature == 0
        self._said = list(prompt_ids)
        self._matcher = matcher
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
        if matcher is not None:
            self._processors.append(lambda _, logits: matcher.mask(logits))
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p > 0:
                self._processors.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed + index)

    @property
    def complete(self) -> bool:
        """Whether the grammar allows no further token."""
        return self._matcher is not None and self._matcher.complete

    def __call__(self, logits: torch.Tensor) -> int:
        """Return a token id. Raises ConfigurationError if the grammar takes too much work."""
        if self._processors:
            said: Any = torch.tensor([self._said], dtype=torch.int64, device=logits.device)
            logits = self._processors(said, logits.float())
        if self._greedy:
            token_id = int(logits.argmax(dim=-1))
        else:
            token_id = int(torch.multinomial(logits.softmax(-1), 1, generator=self._generator))
        self._said.append(token_id)
        if self._matcher is not None:
            self._matcher.consume(token_id)
        return token_id


def token_logprob(token_id: int, logits: torch.Tensor, num_top: int, tokenizer: PromptTokenizer) -> TokenLogprob:
    """Return a token's log probability and the ``num_top`` likeliest ones, from the model's logits ``[1, vocab]``."""
    logprobs = logits[0].float().log_softmax(-1)
    values, ids = logprobs.topk(min(num_top, len(logprobs)))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    top = tuple(TokenLogprob(one, tokenizer.token_text(one), value) for one, value in pairs)
    return TokenLogprob(token_id, tokenizer.token_text(token_id), float(logprobs[token_id]), top)


class AnswerText:
    """Token ids to text, piece by piece.

    Holds back text that may still change: half a character, or the possible beginning of a stop string.
    """

    def __init__(self, tokenizer: PromptTokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._token_ids: list[int] = []
        """The last ones; text of those before is settled."""
        self._settled, self._skip = "", 0
        """Text that cannot change, and how much of it the last tokens repeat."""
        self.text = ""
        """Text released so far."""
        self.stopped = False
        """Whether a stop string was found."""

    def add(self, token_id: int) -> str:
        """Add a token and return the text that it makes certain."""
        self._token_ids.append(token_id)
        text = self._decoded()
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(text[: min(found)])
        return self._release(text[: len(text) - self._uncertain(text)])

    def finish(self) -> str:
        """Return the text held back, once no more tokens come."""
        return "" if self.stopped else self._release(self._decoded())

    def _decoded(self) -> str:
        """Return the text of all tokens. Only the last ones are decoded again for every token."""
        text = self._settled + self._tokenizer.decode(self._token_ids)[self._skip :]
        if len(self._token_ids) >= _MOST_DECODED:
            last = self._token_ids[-_LEAST_DECODED:]
            again = self._tokenizer.decode(last)
            if text.endswith(again) and _REPLACEMENT not in again:  # they begin and end with whole characters
                self._token_ids, self._settled, self._skip = last, text, len(again)
        return text

    def _release(self, text: str) -> str:
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def _uncertain(self, text: str) -> int:
        """Return the length of the end to hold back: half a character, and before it the beginning of a stop string."""
        whole = text.rstrip(_REPLACEMENT)
        longest = max(map(len, self._stop), default=0)
        lengths = range(min(longest, len(whole)), 0, -1)
        beginning = next((n for n in lengths if any(stop.startswith(whole[-n:]) for stop in self._stop)), 0)
        return len(text) - len(whole) + beginning
