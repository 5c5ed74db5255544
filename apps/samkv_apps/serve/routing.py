"""Which of several engines a request goes to: the one that has its documents in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b


def ranked(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Engines, by their names, the one to be asked first in front; the others are for when it is busy.

    Rendezvous hashing (Thaler and Ravishankar, 1998): a document belongs to the engine whose hash together with its own
    is highest, so every router agrees without being told, and an engine that comes or goes moves its own share only.
    A request goes where most of its documents' characters belong.
    """
    digests = [blake2b(text.strip().encode(), digest_size=16).digest() for text in texts]
    owned: Counter[str] = Counter()
    for digest, text in zip(digests, texts, strict=True):
        owned[max(names, key=lambda name: _weight(digest, name))] += len(text)
    return sorted(names, key=lambda name: (owned[name], _weight(min(digests, default=b""), name)), reverse=True)


def _weight(digest: bytes, name: str) -> bytes:
    return blake2b(name.encode(), key=digest, digest_size=8).digest()
