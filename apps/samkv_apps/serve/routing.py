"""Route a request to the engine that has its documents in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b


def ranked(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the engines' names in the order in which to try them; the later ones are for when the first is busy.

    Rendezvous hashing (Thaler and Ravishankar, 1998): a document belongs to the engine with the highest hash of both.
    So routers agree without communication, and an engine that joins or leaves moves only its own share. A request
    goes to the engine that most of its documents' characters belong to.
    """
    digests = [blake2b(text.strip().encode(), digest_size=16).digest() for text in texts]
    owned: Counter[str] = Counter()
    for digest, text in zip(digests, texts, strict=True):
        owned[max(names, key=lambda name: _weight(digest, name))] += len(text)
    return sorted(names, key=lambda name: (owned[name], _weight(min(digests, default=b""), name)), reverse=True)


def _weight(digest: bytes, name: str) -> bytes:
    return blake2b(name.encode(), key=digest, digest_size=8).digest()
