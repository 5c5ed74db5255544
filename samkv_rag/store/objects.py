"""A store in an object store: S3, Google Cloud Storage, Azure, or any other URL that ``obstore`` opens.

``obstore`` is one compiled package without dependencies. It reads ranges, and has time limits and retries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.forking import start_over_in_forks
from samkv_rag.store.base import StoredBytes, require_key
from samkv_rag.store.unreachable import Part, RemoteStore, without_secrets

T = TypeVar("T")
_FOLDER = "chunks"
_SUFFIX = ".safetensors"
_PARALLEL = 16


class ObjectStore(RemoteStore):
    """Keeps bytes as objects under a URL such as ``s3://bucket/prefix``.

    Nothing is evicted; give the bucket a rule that deletes objects by age.

    Args:
        url: the bucket, and optionally a prefix within it.
        timeout_s: time limit of a request, which is retried once.
        options: for the client, such as ``region``, ``endpoint`` or ``skip_signature``; see obstore's
            ``S3Config``, ``GCSConfig`` and ``AzureConfig``. They may be secret, so no message shows them.

    Raises:
        ConfigurationError: obstore is not installed, or refuses the URL or an option.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, **options: Any) -> None:
        try:
            import obstore
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise ConfigurationError(
                f"{without_secrets(url)} needs obstore: pip install 'samkv-rag[objects]'"
            ) from error
        if url.startswith(("file:", "local:")):
            raise ConfigurationError(f"{url} is on this machine; give the folder's path instead")
        limit = timedelta(seconds=timeout_s)
        client: Any = {"timeout": limit, "connect_timeout": min(limit, timedelta(seconds=5)), "allow_http": True}
        retries: Any = {"max_retries": 1, "retry_timeout": limit}
        try:
            self._store = obstore.store.from_url(url, client_options=client, retry_config=retries, **options)
        except (BaseError, ValueError, TypeError, OSError) as error:
            reason = type(error).__name__
            raise ConfigurationError(f"{without_secrets(url)} is not a URL that obstore opens ({reason})") from error
        self._obstore = obstore
        super().__init__(url, (BaseError, OSError))
        self._threads = ThreadPoolExecutor(_PARALLEL, "samkv-objects")
        self._is_forked = False
        start_over_in_forks(self)

    def start_over(self) -> None:
        """Fail at once in a forked process, which lacks obstore's threads: a request would never end."""
        self._threads = ThreadPoolExecutor(_PARALLEL, "samkv-objects")
        self._is_forked = True

    def contains(self, keys: Iterable[str]) -> set[str]:
        wanted = list(keys)
        found = self._threads.map(lambda key: self._get_part(key, 0, 1), wanted)
        return {key for key, part in zip(wanted, found, strict=True) if part is not None}

    def _get_part(self, key: str, start: int, stop: int, version: str | None = None) -> Part | None:
        path = _path(key)
        options = {"range": (start, stop), **({"if_match": version} if version else {})}
        failures = self._obstore.exceptions

        def read() -> Part | None:
            try:
                found = self._obstore.get(self._store, path, options=options)
            except (FileNotFoundError, failures.NotFoundError, failures.PreconditionError):
                return None
            except failures.BaseError as error:
                if "416 Range" not in str(error):
                    raise
                return Part(b"", start)  # the object ends before ``start``
            return Part(bytes(found.bytes()), found.meta["size"], found.meta["e_tag"])

        return self._ask(read)

    def put(self, key: str, data: bytes) -> None:
        path = _path(key)
        self._ask(lambda: self._obstore.put(self._store, path, data))

    def delete(self, keys: Iterable[str]) -> int:
        there = sorted(self.contains(set(keys)))
        if there:
            self._ask(lambda: self._obstore.delete(self._store, [_path(key) for key in there]))
        return len(there)

    def keys(self) -> Iterator[StoredBytes]:
        listed = self._ask(lambda: self._obstore.list(self._store, _FOLDER).collect())
        for entry in listed:
            name = str(entry["path"]).rpartition("/")[2]
            if name.endswith(_SUFFIX):
                yield StoredBytes(name.removesuffix(_SUFFIX), int(entry["size"]), entry["last_modified"].timestamp())

    def _ask(self, request: Callable[[], T]) -> T:
        return super()._ask(_refuse if self._is_forked else request)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _refuse() -> NoReturn:
    raise OSError("it was opened before this process was forked; open the engine in each process")


def _path(key: str) -> str:
    return f"{_FOLDER}/{require_key(key)[:2]}/{key}{_SUFFIX}"
