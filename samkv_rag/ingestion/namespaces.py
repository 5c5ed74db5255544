"""Separates tenants: every namespace has its own fingerprints, and so its own keys and catalog entries.

A store compares fingerprints only. Two engines with different scoped fingerprints never ask for the same key, so
neither a chunk nor the timing of a hit leaks from one to the other.
"""

from __future__ import annotations

import hashlib
import hmac

from samkv_rag.exceptions import ConfigurationError

_MAX_CHARS = 128


def scoped_fingerprint(fingerprint: str, namespace: str = "", secret: str | bytes | None = None) -> str:
    """Fold a namespace and a secret into a model's fingerprint; without either it stays as it is.

    With a secret (HMAC-SHA256), only those who know it can compute the keys of a namespace. A listing of the store
    then does not show whether it has a given text.

    Raises:
        ConfigurationError: the namespace is not a short printable text; the secret is empty, or neither text nor bytes.
    """
    if not isinstance(namespace, str) or len(namespace) > _MAX_CHARS or not namespace.isprintable():
        raise ConfigurationError(
            f"namespace is {namespace!r}; it must be a text of at most {_MAX_CHARS} printable characters"
        )
    if secret is not None and not isinstance(secret, (str, bytes)):  # no message shows it
        raise ConfigurationError(f"store_secret is of type {type(secret).__name__}; it must be text or bytes, or None")
    if secret is not None and not secret:
        raise ConfigurationError("store_secret is empty; give some random text, or None for no secret")
    if not namespace and secret is None:
        return fingerprint
    # A secret from the environment may contain bytes that are not valid text.
    key = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret or b""
    return hmac.new(key, f"{fingerprint}\n{namespace}".encode(), hashlib.sha256).hexdigest()
