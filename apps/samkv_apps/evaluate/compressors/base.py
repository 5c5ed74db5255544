"""The contract of a prompt compressor: the rival that shortens the prompt instead of its KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar


class Compressor(ABC):
    """Chooses what to put into the prompt; the model then reads it by full prefill."""

    name: ClassVar[str]

    def prepare(self, chunks: Sequence[str]) -> None:  # noqa: B027
        """Do what can be done before the question is known, as ingestion does; nothing by default."""

    @abstractmethod
    def compress(self, question: str, chunks: Sequence[str], max_tokens: int) -> list[str]:
        """Texts to put into the prompt in place of chunks, max_tokens at most in all."""
