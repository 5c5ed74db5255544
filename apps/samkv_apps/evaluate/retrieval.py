"""The chunks nearest to a question by embedding, as a vector store would bring them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


class Embeds(Protocol):
    """Texts to unit vectors; :class:`~samkv_apps.evaluate.embedding.Embedder` is one."""

    def embed(self, text: str) -> torch.Tensor:
        """Vectors ``[windows, dimensions]`` of a text."""


def similarities(question: torch.Tensor, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cosine of a question and each text's nearest part, ``[texts]``; both ``[windows, dimensions]``."""
    return torch.tensor([float((vectors @ question[0]).max()) for vectors in texts])


class Retriever:
    """Exact search over the vectors of some texts."""

    def __init__(self, texts: Sequence[str], embedder: Embeds) -> None:
        self._embedder = embedder
        self._vectors = [embedder.embed(text) for text in tqdm(texts, desc="Embedding", unit="chunk", disable=None)]

    def nearest(self, question: str, top_k: int) -> list[int]:
        """Indices of the ``top_k`` nearest texts, best first."""
        scores = similarities(self._embedder.embed(question), self._vectors)
        return scores.argsort(descending=True, stable=True)[:top_k].tolist()


def best_outside(best_first: Sequence[T]) -> list[T]:
    """The best first and last, the worst in the middle, where models look least (arXiv 2307.03172)."""
    worst_first = list(reversed(best_first))
    return [*reversed(worst_first[::2]), *worst_first[1::2]]
