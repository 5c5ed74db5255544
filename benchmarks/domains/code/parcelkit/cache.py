"""Keeping answers of carriers for a while."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import ClassVar


class Lifetimes:
    """How long answers of each kind stay valid, in seconds.

    Tracking events change by the minute, depot data once a day, prices once a quarter. A carrier
    that says nothing about a parcel is asked again soon, because the first scan may be late.
    """

    TRACKING_S: ClassVar[int] = 90
    UNKNOWN_PARCEL_S: ClassVar[int] = 25
    DEPOT_S: ClassVar[int] = 43200
    PRICE_S: ClassVar[int] = 604800


def cache_key(carrier: str, path: str, parameters: dict[str, str]) -> str:
    """Name under which an answer is kept: equal requests get equal keys.

    The order of parameters does not matter, nor does the case of the carrier's name. Parameters
    whose name begins with an underscore (session tokens, time stamps) are left out. The key is
    the first 24 hexadecimal digits of a SHA-256 hash, short enough for a file name.
    """
    kept = sorted((name, value) for name, value in parameters.items() if not name.startswith("_"))
    text = repr((carrier.lower(), path, kept))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def lifetime_s(kind: str, is_known: bool = True) -> int:
    """Seconds for which an answer may be reused.

    ``kind`` is "tracking", "depot" or "price". Whatever the kind, an answer that says the parcel
    is unknown gets the short lifetime ``Lifetimes.UNKNOWN_PARCEL_S``. A kind that is not listed
    here is never reused: its lifetime is zero seconds, and no error is raised for it.
    """
    if not is_known:
        return Lifetimes.UNKNOWN_PARCEL_S
    lifetimes = {"tracking": Lifetimes.TRACKING_S, "depot": Lifetimes.DEPOT_S, "price": Lifetimes.PRICE_S}
    return lifetimes.get(kind, 0)


class AnswerCache:
    """Answers by key, the least recently used leaving first.

    Holds 512 answers unless told otherwise. ``get`` returns None for an answer that is missing or
    too old, and deletes the latter. Time is passed in by the caller in seconds, so the class reads
    no clock. Not safe for threads: every worker owns one.
    """

    def __init__(self, max_answers: int = 512) -> None:
        self.max_answers = max_answers
        self._answers: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def put(self, key: str, answer: bytes, expires_at_s: float) -> None:
        self._answers[key] = (expires_at_s, answer)
        self._answers.move_to_end(key)
        while len(self._answers) > self.max_answers:
            self._answers.popitem(last=False)

    def get(self, key: str, now_s: float) -> bytes | None:
        expires_at_s, answer = self._answers.get(key, (now_s, b""))
        if expires_at_s <= now_s:
            self._answers.pop(key, None)
            return None
        self._answers.move_to_end(key)
        return answer


def shard_of(key: str, num_shards: int = 16) -> int:
    """Number of the cache folder, from 0 to ``num_shards`` - 1, in which a key is kept.

    Keys are hexadecimal, so their first four digits are spread evenly enough. A key that is not
    hexadecimal comes from an old version of the library and lives in shard 0, which the cleaning
    job empties first. Changing the number of shards makes all files on disk unreachable.
    """
    try:
        return int(key[:4], 16) % num_shards
    except ValueError:
        return 0
