"""Objects below a URL, through fsspec. No call waits for ever, and every failure is one of ours."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from samkv_rag.exceptions import ConfigurationError, StoreError, StoreFullError, StoreUnreachableError
from samkv_rag.store.remote.leftovers import remove_leftovers
from samkv_rag.store.shared.background import BackgroundPool
from samkv_rag.store.shared.private_files import make_private_folder, write_atomically
from samkv_rag.store.shared.reachability import Outage, redacted

_NUM_CONNECTIONS = 16
Result = TypeVar("Result")


class RemoteFiles:
    """Reads, writes, lists and deletes whole objects, named relative to the URL.

    Every method raises StoreUnreachableError where the remote fails, refuses or takes longer than ``timeout_s``,
    StoreFullError where it has no room.

    Raises:
        ConfigurationError: no such protocol, its package is not installed, or an option is unknown to it.
    """

    def __init__(self, url: str, timeout_s: float, options: dict[str, Any]) -> None:
        self.name = redacted(url)
        self.timeout_s = timeout_s
        self._fs, self._root = _open_filesystem(url, options)
        self._is_local = "file" in _protocols(self._fs)
        self._leftovers_removed = not self._is_local  # elsewhere a killed writer leaves no file
        self._has_folders = not self._fs.async_impl  # object stores are asynchronous, and know no folders
        self._outage = Outage(self.name)
        self._pool = BackgroundPool(_NUM_CONNECTIONS, "samkv-remote")

    @property
    def outage(self) -> Outage:
        """Whether the remote answers."""
        return self._outage

    def read(self, path: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        return self.read_all([path])[0]

    def read_all(self, paths: Iterable[str]) -> list[bytes | None]:
        """Like :meth:`read`, several at a time."""
        self._outage.require_over()
        futures = [self._pool.submit(self._fs.cat_file, self._full(path)) for path in paths]
        try:
            return [self._content(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def write(self, path: str, data: bytes) -> None:
        """Put an object, whole or not at all."""
        self._outage.require_over()
        try:
            self._result(self._pool.submit(self._write, self._full(path), data))
        except FileNotFoundError as error:
            raise StoreError(f"{self.name} is not there ({error}); create its bucket or folder") from error
        if not self._leftovers_removed:
            self._leftovers_removed = True  # a process that writes does so once, and waits for nothing
            self._pool.submit(remove_leftovers, Path(self._full("")))

    def names(self, folder: str) -> list[str]:
        """What stands directly below ``folder``, without the folder's own name."""
        self._outage.require_over()
        try:
            listed = self._result(self._pool.submit(self._list, self._full(folder)))
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in listed)

    def remove(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""
        self._outage.require_over()
        for future in [self._pool.submit(self._fs.rm_file, self._full(path)) for path in paths]:
            with suppress(FileNotFoundError):
                self._result(future)

    def close(self) -> None:
        """Start nothing more."""
        self._pool.close()

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _write(self, path: str, data: bytes) -> None:
        if self._is_local:
            make_private_folder(Path(path).parent)
            write_atomically(Path(path), data)
            return
        if self._has_folders:
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, data)

    def _list(self, path: str) -> list[str]:
        self._fs.invalidate_cache()
        return list(self._fs.ls(path, detail=False))

    def _content(self, future: Future[bytes]) -> bytes | None:
        try:
            return self._result(future)
        except FileNotFoundError:
            return None

    def _result(self, future: Future[Result]) -> Result:
        """Wait for a call, map its errors, and note whether the remote is there.

        Raises:
            FileNotFoundError: no such object.
        """
        try:
            result = future.result(self.timeout_s)
        except FileNotFoundError:
            self._outage.end()
            raise
        except CancelledError as error:  # by the pool, which takes no more
            raise StoreError(f"the store at {self.name} is closed; open it again") from error
        except PermissionError as error:
            # No outage: who may not write may still be allowed to read.
            raise StoreUnreachableError(f"{self.name} refuses access ({error}); check the credentials") from error
        except (TimeoutError, FutureTimeoutError) as error:  # one and the same from Python 3.11 on
            raise self._outage.begin(f"no answer within {self.timeout_s:g} s") from error
        except Exception as error:  # what backends raise for a failed network is not one tree
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError(f"{self.name} is full; free some space or prune the store") from error
            raise self._outage.begin(f"{type(error).__name__}: {error}") from error
        self._outage.end()
        return result


def _open_filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of a URL, with no cache of its own, and the path within it."""
    try:
        fsspec = import_module("fsspec")
    except ImportError as error:
        raise ConfigurationError(f"a store at {redacted(url)} needs fsspec: pip install 'samkv-rag[remote]'") from error
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    except ImportError as error:
        raise ConfigurationError(
            f"a store at {redacted(url)} needs a further package ({error}); for S3: pip install 'samkv-rag[remote]'"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"no store can be opened at {redacted(url)} ({error})") from error
    return fs, str(root).rstrip("/")


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
