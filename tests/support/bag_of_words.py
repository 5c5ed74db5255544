"""An embedding of LlamaIndex without a model."""

from __future__ import annotations

import hashlib
import re

from llama_index.core.embeddings import BaseEmbedding


class BagOfWords(BaseEmbedding):
    """Embeds a text as hashed word counts: the same words are near, on every machine."""

    def _embed(self, text: str) -> list[float]:
        vector = [1e-3] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % 64] += 1.0
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._embed(query)
