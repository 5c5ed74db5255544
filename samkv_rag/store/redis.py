"""A store in Redis or Valkey. The server evicts, by its ``maxmemory`` and ``maxmemory-policy``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from samkv_rag.exceptions import ConfigurationError, StoreFullError
from samkv_rag.store.base import StoredBytes, require_key
from samkv_rag.store.unreachable import Part, RemoteStore, without_secrets

SCHEMES = ("redis", "rediss", "valkey", "valkeys")
_PREFIX = "samkv:"


class RedisStore(RemoteStore):
    """Keeps bytes under ``samkv:<key>``.

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``valkey://`` or ``valkeys://``.
        timeout_s: time limit of a request.
        options: for ``redis.Redis``.

    Raises:
        ConfigurationError: redis is not installed, or refuses the URL or an option.
    """

    def __init__(self, url: str, timeout_s: float = 5.0, **options: Any) -> None:
        try:
            import redis
        except ImportError as error:
            raise ConfigurationError(f"{without_secrets(url)} needs redis: pip install 'samkv-rag[redis]'") from error
        scheme, _, rest = url.partition("://")
        address = f"{scheme.replace('valkey', 'redis')}://{rest}"
        limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        try:
            self._client: Any = redis.Redis.from_url(address, **(limits | options))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"{without_secrets(url)} is not a URL that redis opens") from error
        self._full: type[Exception] = redis.exceptions.OutOfMemoryError
        super().__init__(url, (redis.exceptions.RedisError, OSError))

    def contains(self, keys: Iterable[str]) -> set[str]:
        wanted = list(keys)
        found = self._ask_each("exists", map(_name, wanted))
        return {key for key, is_there in zip(wanted, found, strict=True) if is_there}

    def _get_part(self, key: str, start: int, stop: int, version: str | None = None) -> Part | None:
        name = _name(key)

        def read() -> list[Any]:
            with self._client.pipeline() as pipeline:  # one transaction, so bytes and length belong together
                return list(pipeline.getrange(name, start, stop - 1).strlen(name).exists(name).execute())

        data, num_bytes, is_there = self._ask(read)
        return Part(data, num_bytes) if is_there else None

    def put(self, key: str, data: bytes) -> None:
        def write() -> None:
            try:
                self._client.set(_name(key), data)
            except self._full as error:
                raise StoreFullError(
                    "the server has no memory left (maxmemory) and its policy evicts nothing; raise maxmemory or set "
                    "maxmemory-policy to allkeys-lru. Stored chunks are intact"
                ) from error

        self._ask(write)

    def delete(self, keys: Iterable[str]) -> int:
        names = [_name(key) for key in set(keys)]
        return int(self._ask(lambda: self._client.delete(*names))) if names else 0

    def keys(self) -> Iterator[StoredBytes]:
        names = self._ask(lambda: list(self._client.scan_iter(match=f"{_PREFIX}*", count=1000)))
        for name, num_bytes in zip(names, self._ask_each("strlen", names), strict=True):
            yield StoredBytes(name.decode(errors="replace").removeprefix(_PREFIX), num_bytes, 0.0)

    def close(self) -> None:
        self._client.close()

    def _ask_each(self, command: str, names: Iterable[str | bytes]) -> list[int]:
        """Return the answer to ``command`` for each name, in one round trip."""

        def ask() -> list[int]:
            with self._client.pipeline(transaction=False) as pipeline:
                for name in names:
                    getattr(pipeline, command)(name)
                return list(pipeline.execute())

        return self._ask(ask)


def _name(key: str) -> str:
    return _PREFIX + require_key(key)
