"""Find the chunks nearest to a question, as a vector store or a search engine does, and order them."""

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
    """Turns texts into unit vectors, such as :class:`~samkv_apps.evaluate.embedding.Embedder`."""

    def embed(self, text: str) -> torch.Tensor:
        """Return the vectors of a text, ``[windows, dimensions]``."""


def open_retriever(name: RetrieverName, texts: Sequence[str]) -> Retriever | BM25:
    """Return a retriever over ``texts``.

    Raises:
        ModelNotFoundError: the embedding model is not installed.
    """
    return BM25(texts) if name == "bm25" else Retriever(texts, minilm())


def minilm() -> Embeds:
    """Return all-MiniLM-L6-v2 on the CPU."""
    from samkv_apps.evaluate.embedding import Embedder

    return Embedder(torch.device("cpu"))


def similarities(question: torch.Tensor, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the cosine of a question and each text's nearest window, ``[texts]``; inputs ``[windows, dimensions]``."""
    return torch.tensor([float((vectors @ question[0]).max()) for vectors in texts])


class Retriever:
    """Exact search over the vectors of texts."""

    def __init__(self, texts: Sequence[str], embedder: Embeds) -> None:
        self._embedder = embedder
        self._vectors = [embedder.embed(text) for text in tqdm(texts, desc="Embedding", unit="chunk", disable=None)]

    def nearest(self, question: str, top_k: int) -> list[int]:
        """Return the indices of the ``top_k`` nearest texts, best first."""
        scores = similarities(self._embedder.embed(question), self._vectors)
        return scores.argsort(descending=True, stable=True)[:top_k].tolist()


class BM25:
    """Search by words: BM25 as in Lucene, without English stop words."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._num_texts = len(texts)
        self._index = bm25s.BM25()
        self._index.index(_words(texts), show_progress=False)

    def nearest(self, question: str, top_k: int) -> list[int]:
        """Return the indices of the ``top_k`` nearest texts, best first."""
        words = _words([question])[0]
        if not words:  # such as "Is it?"
            return list(range(min(top_k, self._num_texts)))
        scores = torch.from_numpy(self._index.get_scores(words))
        return scores.argsort(descending=True, stable=True)[:top_k].tolist()


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return words


def in_order(best_first: Sequence[T], order: Order, seed: str) -> list[T]:
    """Put ranked chunks into the order of the prompt; ``"file"`` is not possible here."""
    if order == "random":
        return random.Random(seed).sample(best_first, len(best_first))
    return list(reversed(best_first)) if order == "best_last" else list(best_first)


def best_outside(best_first: Sequence[T]) -> list[T]:
    """Put the best first and last, and the worst in the middle, where models look least (arXiv 2307.03172)."""
    worst_first = list(reversed(best_first))
    return [*reversed(worst_first[::2]), *worst_first[1::2]]
