"""Documents about a lighthouse, and an embedding without a model."""

from __future__ import annotations

import hashlib
import re
from functools import cache

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from samkv_rag import SamKVEngine
from tests.scripted import tiny_engine

LAMP = "The lamp of the lighthouse turns once in a minute, and it is never dark at night."
KEEPER = "The keeper of the lighthouse rests on Sundays, when his daughter minds the lamp."
SEA = "The sea around the island is rough in winter, and no boat lands before March."
TEXTS = [LAMP, KEEPER, SEA]
QUERY = "When does the keeper rest?"


class WordEmbeddings(Embeddings):
    """Embeds a text as hashed word counts, normalised; the same on every machine."""

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * 64
        for word in re.findall(r"\w+", text.lower()):
            vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % 64] += 1.0
        norm = sum(x * x for x in vector) ** 0.5 or 1.0
        return [x / norm for x in vector]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


@cache
def shared_engine() -> SamKVEngine:
    """For tests that other tests' chunks do not affect; making an engine takes longer than they do."""
    return tiny_engine()


def live_chunks(engine: SamKVEngine, *texts: str) -> bool:
    """Whether the KV store holds exactly the chunks of these texts."""
    stored = {found.key for found in engine.store.keys()}
    return stored == engine._library._keys(texts)


def documents(*texts: str) -> list[Document]:
    return [Document(page_content=text, metadata={"length": len(text)}) for text in texts]
