"""An embedding for tests: texts that share words are near."""

from __future__ import annotations

import hashlib

import numpy as np

from samkv_rag.ask.nearest import Vectors

DIMENSIONS = 64


class WordCounts:
    """Texts to unit vectors that are near where texts share words; every text it embeds is noted."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def __call__(self, text: str) -> Vectors:
        self.embedded.append(text)
        vector = np.zeros((1, DIMENSIONS), dtype=np.float32)
        for word in text.lower().replace(".", " ").replace("?", " ").split():
            vector[0, hashlib.sha256(word.encode()).digest()[0] % DIMENSIONS] += 1
        return vector / np.linalg.norm(vector)
