"""The base of remote stores. After a failed request, further ones fail at once for a while."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from samkv_rag.exceptions import DamagedChunkError, StoreUnreachableError, StoreUnreachableWarning
from samkv_rag.store.base import Blob, Buffer, BytesBlob, Store

T = TypeVar("T")
logger = logging.getLogger(__name__)
_RETRY_AFTER_S = 10.0
_ALL = 1 << 40
"""More bytes than any chunk has."""
MASK = "**********"
"""Shown in place of a secret, as pydantic does."""


def without_secrets(location: str) -> str:
    """Mask the user, password and query of a URL, so that it can be shown."""
    shown = re.sub(r"(?<=://).*@", f"{MASK}@", location)  # passwords may hold / and @: up to the last @
    return f"{shown.partition('?')[0]}?{MASK}" if "://" in shown and "?" in shown else shown


class Part(NamedTuple):
    """Some bytes of a stored chunk."""

    data: bytes
    num_bytes: int
    """Size of the whole chunk."""
    version: str | None = None
    """Equal only for equal bytes; None if the server has no versions."""


class RemoteStore(Store):
    """A store at a URL, which other machines may share. Implementations make every request through ``self._ask``."""

    shared = True

    def __init__(self, url: str, errors: tuple[type[BaseException], ...]) -> None:
        self._place = without_secrets(url)
        folder = os.environ.get("SAMKV_CATALOGS") or Path.home() / ".cache" / "samkv_rag" / "catalogs"
        parts = urlsplit(url)
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/")).geturl()
        self.catalog_path = Path(folder) / f"{hashlib.sha256(address.encode()).hexdigest()}.sqlite"
        self._errors = errors
        self._until = float("-inf")
        self._reason = ""

    def get(self, key: str) -> Blob | None:
        return self.get_beginning(key, _ALL)

    def get_beginning(self, key: str, num_bytes: int) -> Blob | None:
        part = self._get_part(key, 0, num_bytes)
        return None if part is None else _BlobInParts(part, partial(self._get_part, key))

    @abstractmethod
    def _get_part(self, key: str, start: int, stop: int, version: str | None = None) -> Part | None:
        """Return bytes ``start`` to ``stop``, as far as they exist; None without that key, or that ``version``."""

    def _ask(self, request: Callable[[], T]) -> T:
        if (remaining_s := self._until - time.monotonic()) > 0:
            raise StoreUnreachableError(
                f"{self._place} cannot be reached ({self._reason}); it is tried again in {remaining_s:.0f} s"
            )
        try:
            result = request()
        except self._errors as error:
            reason = without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])[:200]
            self._reason, self._until = reason, time.monotonic() + _RETRY_AFTER_S
            message = f"{self._place} cannot be reached ({reason}); chunks that lie there alone are misses"
            logger.warning(message)
            warnings.warn(message, StoreUnreachableWarning, stacklevel=3)  # of equal ones Python shows the first
            raise StoreUnreachableError(
                f"{self._place} cannot be reached ({reason}); check the address, the network and the credentials"
            ) from error
        self._until = float("-inf")
        return result


class _BlobInParts:
    """Holds the first bytes, and fetches the rest by one request when it is needed."""

    def __init__(self, first: Part, get_part: Callable[[int, int, str | None], Part | None]) -> None:
        self._here = BytesBlob(first.data)
        self._first, self._get_part = first, get_part
        self._lock = threading.Lock()
        self.size = first.num_bytes
        self.identity: object = first.version or self._here.identity

    @property
    def is_near(self) -> bool:
        return self._here.size == self.size

    def read(self, parts: Sequence[tuple[int, Buffer]]) -> None:
        if any(start + memoryview(buffer).nbytes > self._here.size for start, buffer in parts):
            with self._lock:
                if not self.is_near:
                    self._here = BytesBlob(self._first.data + self._rest())
        self._here.read(parts)

    def _rest(self) -> bytes:
        try:
            rest = self._get_part(self._here.size, self.size, self._first.version)
        except StoreUnreachableError as error:
            raise DamagedChunkError(str(error)) from error
        if rest is None or rest.num_bytes != self.size or len(rest.data) != self.size - self._here.size:
            raise DamagedChunkError("it was replaced while it was read")
        return rest.data
