"""The interface of a prompt compressor, which shortens the prompt instead of its KV cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar


class Compressor(ABC):
    """Chooses the texts of the prompt, which the model then reads by full prefill."""

    name: ClassVar[str]

    def prepare(self, chunks: Sequence[str]) -> None:  # noqa: B027
        """Do the work that needs no question, as in ingestion; by default nothing."""

    @abstractmethod
    def compress(self, question: str, chunks: Sequence[str], max_tokens: int) -> list[str]:
        """Return the texts that replace the chunks in the prompt, at most ``max_tokens`` in total."""
