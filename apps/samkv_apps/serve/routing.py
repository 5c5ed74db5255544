"""Route a request to the engine that has its documents in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from math import ceil

_MOST_LOAD = 1.25
"""Requests that an engine may have, relative to the mean, before others help it."""


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


def balanced(names: Sequence[str], loads: Mapping[str, int]) -> list[str]:
    """Return ``names`` in the same order, but those with too many requests last; ``loads`` are the requests of each.

    Hashing with bounded loads (Mirrokni et al., arXiv 1608.01350). Without it, the engine of the most popular documents
    would work alone. A helper reads their KV from the store once, and then has it in memory, too.
    """
    limit = ceil(_MOST_LOAD * (sum(loads.values()) + 1) / len(loads))
    return sorted(names, key=lambda name: loads[name] >= limit)


def _weight(digest: bytes, name: str) -> bytes:
    return blake2b(name.encode(), key=digest, digest_size=8).digest()
