"""How the next token is chosen, and how token ids become text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.tokenization import PromptTokenizer

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
        checks = {
            "max_new_tokens": (isinstance(self.max_new_tokens, int) and self.max_new_tokens >= 1, "at least 1"),
            "temperature": (_is_number(self.temperature) and self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (_is_number(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            "stop": (all(isinstance(s, str) and s for s in self.stop), "made of texts that are not empty"),
            "seed": (self.seed is None or isinstance(self.seed, int), "an integer, or None"),
        }
        for name, (holds, range_in_words) in checks.items():
            if not holds:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; it must be {range_in_words}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


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
        """Length of the text's end that must wait."""
        if text.endswith(_REPLACEMENT):
            return len(text) - len(text.rstrip(_REPLACEMENT))
        longest = max(map(len, self._stop), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stop)), 0)
