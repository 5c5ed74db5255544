"""Fewer chunks: full prefill of those nearest to the question by embedding. The trivial rival."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from samkv_apps.evaluate.compressors.base import Compressor
from samkv_apps.evaluate.embedding import Embedder
from samkv_apps.evaluate.retrieval import similarities
from samkv_rag.engine import SamKVEngine


class FewerChunks(Compressor):
    """What a user gets by retrieving less, with all-MiniLM-L6-v2 as the retriever.

    Chunks are taken whole, best first, as long as they fit, and put in the order of the prompt; where
    not even the best fits, its beginning is taken. A chunk longer than the embedding model reads is
    as near as its nearest part.
    """

    name: ClassVar[str] = "fewer_chunks"

    def __init__(self, engine: SamKVEngine, embedder: Embedder | None = None) -> None:
        self._engine = engine
        self._embedder = embedder or Embedder(engine.decoder.device)
        self._embeddings: dict[str, torch.Tensor] = {}  # chunk to [windows, dimensions]

    def prepare(self, chunks: Sequence[str]) -> None:
        """Embed the chunks, which a retriever does at ingestion."""
        missing = [chunk for chunk in dict.fromkeys(chunks) if chunk not in self._embeddings]
        self._embeddings.update((chunk, self._embedder.embed(chunk)) for chunk in missing)

    def compress(self, question: str, chunks: Sequence[str], max_tokens: int) -> list[str]:
        """See :class:`Compressor`."""
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
        """Cosine of the question and each chunk's nearest part, ``[chunks]``."""
        return similarities(self._embedder.embed(question), [self._embeddings[chunk] for chunk in chunks])


def fitting(best_first: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Those of ``best_first`` that fit into ``max_tokens`` together with all better ones taken."""
    taken: list[int] = []
    for i in best_first:
        if lengths[i] <= max_tokens:
            taken.append(i)
            max_tokens -= lengths[i]
    return taken


def cut_to_tokens(engine: SamKVEngine, text: str, max_tokens: int) -> str:
    """Longest beginning of ``text`` that the engine counts as ``max_tokens`` at most."""
    token_ids = engine.tokenize(text)[: max(0, max_tokens)]
    while token_ids:
        # A cut inside a character leaves a replacement character, which the text never had.
        beginning = engine.tokenizer.decode(token_ids).rstrip("\N{REPLACEMENT CHARACTER}").strip()
        if engine.count_tokens(beginning) <= max_tokens:
            return beginning
        token_ids.pop()
    return ""
