"""The chunks nearest to a question, as a vector store or a search engine would bring them, and their order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")
RetrieverName = Literal["minilm", "bm25"]
Order = Literal["file", "best_first", "best_last", "random"]


class Embeds(Protocol):
    """Texts to unit vectors; :class:`~samkv_apps.evaluate.embedding.Embedder` is one."""

    def embed(self, text: str) -> torch.Tensor:
        """Vectors ``[windows, dimensions]`` of a text."""


class Finds(Protocol):
    """A retriever over some texts."""

    def nearest(self, question: str, top_k: int) -> list[int]:
        """Indices of the ``top_k`` nearest texts, best first."""


def open_retriever(name: RetrieverName, texts: Sequence[str]) -> Finds:
    """A retriever over ``texts``.

    Raises:
        ModelNotFoundError: the embedding model is not installed.
    """
    return BM25(texts) if name == "bm25" else Retriever(texts, minilm())


def minilm() -> Embeds:
    """all-MiniLM-L6-v2."""
    from samkv_apps.evaluate.embedding import Embedder

    return Embedder(torch.device("cpu"))


def similarities(question: torch.Tensor, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cosine of a question and each text's nearest part, ``[texts]``; both ``[windows, dimensions]``."""
    return torch.tensor([float((vectors @ question[0]).max()) for vectors in texts])


class Retriever:
    """Exact search over the vectors of some texts."""

    def __init__(self, texts: Sequence[str], embedder: Embeds) -> None:
        self._embedder = embedder
        self._vectors = [embedder.embed(text) for text in tqdm(texts, desc="Embedding", unit="chunk", disable=None)]

    def nearest(self, question: str, top_k: int) -> list[int]:
        scores = similarities(self._embedder.embed(question), self._vectors)
        return scores.argsort(descending=True, stable=True)[:top_k].tolist()


class BM25:
    """Search by words: BM25 as Lucene computes it, English stop words left out."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def nearest(self, question: str, top_k: int) -> list[int]:
        scores = torch.from_numpy(self._index.get_scores(_words([question])[0]))
        return scores.argsort(descending=True, stable=True)[:top_k].tolist()


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return words


def in_order(best_first: Sequence[T], order: Order, seed: str) -> list[T]:
    """Chunks as they are to stand in the prompt, the ranking given; ``"file"`` is not for it to know."""
    if order == "random":
        return random.Random(seed).sample(best_first, len(best_first))
    return list(reversed(best_first)) if order == "best_last" else list(best_first)


def best_outside(best_first: Sequence[T]) -> list[T]:
    """The best first and last, the worst in the middle, where models look least (arXiv 2307.03172)."""
    worst_first = list(reversed(best_first))
    return [*reversed(worst_first[::2]), *worst_first[1::2]]
