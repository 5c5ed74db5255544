"""How the next token is chosen, and how token ids become text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from samkv_rag.checks import require_integer, require_number
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.tokenization import PromptTokenizer

_MIN_TEMPERATURE = 1e-3
"""Below it logits divided by the temperature leave the range of float32."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop.

    Raises:
        ConfigurationError: a value is out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int | None = None

    def __post_init__(self) -> None:
        require_integer("max_new_tokens", self.max_new_tokens, 1)
        require_number("temperature", self.temperature, 0)
        if 0 < self.temperature < _MIN_TEMPERATURE:
            raise ConfigurationError(
                f"temperature is {self.temperature!r}; it must be 0 (greedy) or at least {_MIN_TEMPERATURE:g}"
            )
        require_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ConfigurationError("top_p is 0; it must be above 0 and at most 1")
        if wrong := [stop for stop in self.stop if not isinstance(stop, str) or not stop]:
            raise ConfigurationError(f"stop holds {wrong[0]!r}; it must be made of texts that are not empty")
        if self.seed is not None:
            require_integer("seed", self.seed, -(2**63), 2**64 - 1)


class TokenChooser:
    """Chooses the next token from logits ``[batch, vocab]``."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._greedy = sampling.temperature == 0
        self._processors = LogitsProcessorList()
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """Return a token id."""
        if self._greedy:
            return int(logits.argmax(dim=-1))
        no_history: Any = torch.empty(1, 0, dtype=torch.int64, device=logits.device)
        probabilities = self._processors(no_history, logits.float()).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


class AnswerText:
    """Token ids to text, piece by piece.

    Holds back what may still change: half a character of several tokens, or text that may turn out
    to be the beginning of a stop string.
    """

    def __init__(self, tokenizer: PromptTokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._token_ids: list[int] = []
        self.text = ""
        """What was released so far."""
        self.stopped = False
        """Whether a stop string was met."""

    def add(self, token_id: int) -> str:
        """Take a token and return the text it makes certain."""
        self._token_ids.append(token_id)
        text = self._tokenizer.decode(self._token_ids)
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(text[: min(found)])
        return self._release(text[: len(text) - self._uncertain(text)])

    def finish(self) -> str:
        """Return what was held back, once no more tokens come."""
        return "" if self.stopped else self._release(self._tokenizer.decode(self._token_ids))

    def _release(self, text: str) -> str:
        piece = text[len(self.text) :]
        self.text += piece
        return piece

    def _uncertain(self, text: str) -> int:
        """Length of the text's end that must wait: half a character, and before it the beginning of a stop string."""
        whole = text.rstrip(_REPLACEMENT)
        longest = max(map(len, self._stop), default=0)
        lengths = range(min(longest, len(whole)), 0, -1)
        beginning = next((n for n in lengths if any(stop.startswith(whole[-n:]) for stop in self._stop)), 0)
        return len(text) - len(whole) + beginning
