"""Keys and fingerprints: hashes, and the only names given from outside that become part of a path."""

from __future__ import annotations

import re
from collections.abc import Mapping

from samkv_rag.exceptions import StoreError

_HASH = re.compile(r"[0-9a-f]{64}")


def is_hash(text: object) -> bool:
    """Whether it is a SHA-256 in hex."""
    return isinstance(text, str) and _HASH.fullmatch(text) is not None


def require_hash(text: str) -> str:
    """Return a key or fingerprint as it is.

    Raises:
        StoreError: it is neither.
    """
    if not is_hash(text):
        raise StoreError(f"{text!r} is not a SHA-256 in hex, as keys and fingerprints are")
    return text


def require_keys(references: Mapping[str, str]) -> Mapping[str, str]:
    """Return references as they are.

    Raises:
        StoreError: a source refers to something else than a key.
    """
    for key in references.values():
        require_hash(key)
    return references
