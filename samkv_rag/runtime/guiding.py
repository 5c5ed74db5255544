"""Which tokens a grammar allows next."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.forking import cached_property
from samkv_rag.grammar import Grammar, llguidance
from samkv_rag.model.tokenization import PromptTokenizer


class Guide:
    """Compiles grammars for one tokenizer."""

    def __init__(self, tokenizer: PromptTokenizer, end_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = sorted(end_ids)

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher at the beginning of an answer."""
        return Matcher(llguidance().LLMatcher(self._vocabulary, grammar.lark, log_level=0))

    @cached_property
    def _vocabulary(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self._tokenizer.tokenizer, eos_token=self._end_ids or None)


class Matcher:
    """A grammar, and an answer's place in it."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._require_sound()

    def copy(self) -> Matcher:
        return Matcher(self._matcher.deep_copy())

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """Return ``logits`` ``[1, vocab]`` with -inf for tokens that the grammar does not allow."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._require_sound()
        refused = torch.ones(logits.shape[1], dtype=torch.bool)  # models may have more logits than tokens
        refused[: len(allowed)] = ~allowed[: len(refused)]
        return logits.masked_fill(refused.to(logits.device), float("-inf"))

    def consume(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._require_sound()

    def _require_sound(self) -> None:
        """Raise ConfigurationError if the grammar is invalid, or takes too much work."""
        if self._matcher.is_error():
            words = self._matcher.get_error().partition("\n   1 |")[0].strip()
            raise ConfigurationError(f"the grammar cannot be used: {words}")
