"""The chunks nearest to a question by embedding, as a vector store would bring them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


class Embeds(Protocol):
    """Texts to unit vectors; :class:`~samkv_rag.evaluation.embedding.Embedder` is one."""

    def embed(self, text: str) -> torch.Tensor:
        """Vectors ``[windows, dimensions]`` of a text."""


class Retriever:
    """Exact search over the vectors of some texts; of a text's several vectors the nearest counts."""

    def __init__(self, texts: Sequence[str], embedder: Embeds) -> None:
        self._embedder = embedder
        vectors = [embedder.embed(text) for text in tqdm(texts, desc="Embedding", unit="chunk", disable=None)]
        self._vectors = torch.cat(vectors)  # [windows of all texts, dimensions]
        self._owners = torch.repeat_interleave(torch.tensor([len(own) for own in vectors]))
        self._num_texts = len(texts)

    def nearest(self, question: str, top_k: int) -> list[int]:
        """Indices of the ``top_k`` nearest texts, best first."""
        scores = (self._vectors @ self._embedder.embed(question)[0]).float()
        best = torch.full((self._num_texts,), -torch.inf).scatter_reduce(0, self._owners, scores.cpu(), "amax")
        return best.argsort(descending=True, stable=True)[:top_k].tolist()


def best_outside(best_first: Sequence[T]) -> list[T]:
    """The best first and last, the worst in the middle, where models look least (arXiv 2307.03172)."""
    worst_first = list(reversed(best_first))
    return [*reversed(worst_first[::2]), *worst_first[1::2]]
