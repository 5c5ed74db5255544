"""Full prefill of fewer chunks: those nearest to the question by embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from samkv_apps.evaluate.compressors.base import Compressor
from samkv_apps.evaluate.embedding import Embedder
from samkv_apps.evaluate.retrieval import similarities
from samkv_rag.engine import SamKVEngine


class FewerChunks(Compressor):
    """Retrieves less, with all-MiniLM-L6-v2 as the retriever.

    Whole chunks are taken, best first, as long as they fit; they keep the order of the prompt. If the best does not
    fit, its beginning is taken. A chunk longer than the embedding model's window counts by its nearest window.
    """

    name: ClassVar[str] = "fewer_chunks"

    def __init__(self, engine: SamKVEngine, embedder: Embedder | None = None) -> None:
        self._engine = engine
        self._embedder = embedder or Embedder(engine.decoder.device)
        self._embeddings: dict[str, torch.Tensor] = {}  # chunk to [windows, dimensions]

    def prepare(self, chunks: Sequence[str]) -> None:
        """Embed the chunks, as a retriever does at ingestion."""
        missing = [chunk for chunk in dict.fromkeys(chunks) if chunk not in self._embeddings]
        self._embeddings.update((chunk, self._embedder.embed(chunk)) for chunk in missing)

    def compress(self, question: str, chunks: Sequence[str], max_tokens: int) -> list[str]:
        self.prepare(chunks)
        lengths = [self._engine.count_tokens(chunk) for chunk in chunks]
        best_first = self.similarities(question, chunks).argsort(descending=True, stable=True).tolist()
        if not best_first:
            return []
        if lengths[best_first[0]] > max_tokens:
            beginning = cut_to_tokens(self._engine, chunks[best_first[0]], max_tokens)
            return [beginning] if beginning else []
        return [chunks[i] for i in sorted(fitting(best_first, lengths, max_tokens))]

    def similarities(self, question: str, chunks: Sequence[str]) -> torch.Tensor:
        """Return the cosine of the question and each chunk's nearest window, ``[chunks]``."""
        return similarities(self._embedder.embed(question), [self._embeddings[chunk] for chunk in chunks])


def fitting(best_first: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Take chunks in order, skipping those that no longer fit into ``max_tokens``."""
    taken: list[int] = []
    for i in best_first:
        if lengths[i] <= max_tokens:
            taken.append(i)
            max_tokens -= lengths[i]
    return taken


def cut_to_tokens(engine: SamKVEngine, text: str, max_tokens: int) -> str:
    """Return the longest beginning of ``text`` that has at most ``max_tokens``."""
    token_ids = engine.tokenize(text)[: max(0, max_tokens)]
    while token_ids:
        # A cut inside a character decodes to a replacement character.
        beginning = engine.tokenizer.decode(token_ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()
        if engine.count_tokens(beginning) <= max_tokens:
            return beginning
        token_ids.pop()
    return ""
