"""A store in Redis or Valkey: caches near many machines, kept as long as the server keeps them.

    samkv:1:chunk:KEY               string, the encoded chunk
    samkv:1:FINGERPRINT:entries     hash, key -> entry
    samkv:1:FINGERPRINT:marks       sorted set, key -> mark
    samkv:1:FINGERPRINT:removed     mark of the last removal
    samkv:1:FINGERPRINT:references  hash, s:SOURCE -> key, n:KEY -> number of its sources
    samkv:1:mark                    mark of the last change

A chunk and its entry are put in one step. Marks are the server's time in microseconds, made to rise, so that
they go on where the server lost the counter. What the server evicts is a miss. Chunks alone have a time to
live, so that a policy for such keys (``volatile-lru``) evicts nothing else; sources and their numbers are one
key, because a number without its sources would let chunks in use be deleted.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from samkv_rag.exceptions import (
    ConfigurationError,
    EvictionPolicyWarning,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from samkv_rag.store.base import EncodedChunk, Entry
from samkv_rag.store.redis import scripts
from samkv_rag.store.shared.hashes import require_keys
from samkv_rag.store.shared.options import require_timeout, require_url
from samkv_rag.store.shared.reachability import Outage, redacted
from samkv_rag.store.shared.whole import Found, WholeChunkStore, verified, warn_damaged

PREFIX = "samkv:1:"
SCHEMES = ("redis", "rediss", "valkey", "valkeys")
TIMEOUT_S = 10.0
_MAX_VALUE_BYTES = 512 * 1024 * 1024
_BATCH = 1000
_KEPT_S = 100 * 365 * 24 * 3600
"""No limit, but what marks a chunk as a key that a policy for volatile keys may evict."""


class RedisStore(WholeChunkStore):
    """Keeps chunks as strings in a Redis or Valkey server, shared by any number of machines.

    ``url`` is ``redis://[user:password@]host[:port][/database]``; ``rediss://`` with TLS; ``valkey://`` and
    ``valkeys://`` are the same. The server's ``maxmemory`` is the budget: with a policy of eviction
    (``volatile-lru``), what it evicts is a miss; without, ingestion says that the store is full. Options are
    those of ``redis.Redis``.

    Raises:
        ConfigurationError: the package redis is not installed, an option is unknown to it, or the timeout is not
            positive.
        StoreUnreachableError: no answer from the server.

    Warns:
        EvictionPolicyWarning: the server's policy may evict the lists of chunks and of sources too.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, **client_options: Any) -> None:
        require_timeout("timeout_s", timeout_s)
        self.name = redacted(require_url(url))
        self._outage = Outage(self.name)
        self._client, self._errors = _connect(url, timeout_s, client_options)
        self._scripts: dict[str, Any] = {}
        self._require_answer()
        self._warn_of_policy()

    def put_encoded(self, chunk: EncodedChunk) -> None:
        """See :meth:`KVStore.put_encoded`.

        Raises:
            StoreFullError: the server's memory is used up, or the chunk is larger than a server takes.
        """
        if len(chunk.data) > _MAX_VALUE_BYTES:
            raise StoreFullError(
                f"a chunk of {len(chunk.data)} bytes is more than {self.name} takes ({_MAX_VALUE_BYTES}); "
                "split the text into smaller chunks, or store int8"
            )
        self._run(scripts.PUT, chunk.fingerprint, [chunk.entry.key, chunk.entry.to_json(), chunk.data, str(_KEPT_S)])

    def remove(self, keys: Iterable[str]) -> int:
        """See :meth:`KVStore.remove`."""
        gone = sorted(set(keys))
        return sum(self._count(scripts.REMOVE, fingerprint, gone) for fingerprint in self._fingerprints())

    def refer(self, fingerprint: str, references: Mapping[str, str]) -> int:
        """See :meth:`KVStore.refer`."""
        before: set[str] = set()
        for batch in _batches(require_keys(references)):
            pairs = [part for source in batch for part in (_bytes(source), references[source])]
            before |= _texts(self._run(scripts.POINT, fingerprint, pairs))
        return self._count(scripts.COLLECT, fingerprint, sorted(before))

    def release(self, fingerprint: str, sources: Iterable[str]) -> int:
        """See :meth:`KVStore.release`."""
        before: set[str] = set()
        for batch in _batches(sources):
            before |= _texts(self._run(scripts.DROP, fingerprint, [_bytes(source) for source in batch]))
        return self._count(scripts.COLLECT, fingerprint, sorted(before))

    def references(self, fingerprint: str) -> dict[str, str]:
        """See :meth:`KVStore.references`."""
        with self._calling():
            found = self._client.hgetall(_of(fingerprint, "references"))
        return {_text(name[2:]): key.decode() for name, key in found.items() if name.startswith(b"s:")}

    def changes(self, fingerprint: str, since: int) -> tuple[list[Entry], int] | None:
        """See :meth:`KVStore.changes`."""
        try:
            with self._calling():
                mark, removed = (int(m or 0) for m in self._client.mget(f"{PREFIX}mark", _of(fingerprint, "removed")))
                if mark == since:
                    return [], since
                if since > mark or 0 < since < removed:
                    return None
                new = self._client.zrangebyscore(_of(fingerprint, "marks"), f"({since}", mark)
                entries = self._client.hmget(_of(fingerprint, "entries"), new) if new else []
        except StoreUnreachableError as error:
            self._outage.warn(error)
            raise
        return list(_readable(fingerprint, new, entries)), mark

    def nbytes(self) -> int:
        """See :meth:`KVStore.nbytes`; what the server evicted is not counted."""
        with self._calling():
            keys = list(self._client.scan_iter(f"{PREFIX}chunk:*", count=1000))
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.strlen(key)
            return sum(pipeline.execute())

    def close(self) -> None:
        """See :meth:`KVStore.close`."""
        self._client.close()

    def _require_answer(self) -> None:
        try:
            with self._calling():
                self._client.ping()
        except TypeError as error:  # the client takes any option, and trips over it when it connects
            raise ConfigurationError(f"no store can be opened at {self.name} ({error})") from error

    def _warn_of_policy(self) -> None:
        with suppress(StoreError), self._calling():  # not every user may ask
            memory = self._client.info("memory")
            policy = str(memory.get("maxmemory_policy", ""))
            if memory.get("maxmemory") and policy.startswith("allkeys-"):
                warnings.warn(
                    f"{self.name} evicts by {policy}, which may take the lists of chunks and of sources too: chunks "
                    "are then computed again, sources must be ingested again; set maxmemory-policy to volatile-lru",
                    EvictionPolicyWarning,
                    stacklevel=3,
                )

    def _find(self, key: str, fingerprint: str) -> Found | None:
        try:
            with self._calling():
                pipeline = self._client.pipeline(transaction=False)
                entry, data = pipeline.hget(_of(fingerprint, "entries"), key).get(_chunk(key)).execute()
        except StoreUnreachableError as error:
            self._outage.warn(error)
            return None
        if entry is None:
            return None
        if data is None:
            self._unlist(key, fingerprint)
            return None
        name = f"{self.name} {_chunk(key)}"
        try:
            chunk = EncodedChunk(_entry(entry, key, fingerprint), fingerprint, data)
        except ValueError as error:
            warn_damaged(name, error)
            return None
        return verified(key, chunk, name)

    def _unlist(self, key: str, fingerprint: str) -> None:
        """It was evicted. Reading must not depend on being allowed to write."""
        with suppress(StoreError):
            self._count(scripts.FORGET, fingerprint, [key])

    def _run(self, script: str, fingerprint: str, arguments: Sequence[str | bytes]) -> Any:
        if script not in self._scripts:
            self._scripts[script] = self._client.register_script(script)
        with self._calling():
            return self._scripts[script](args=[PREFIX, fingerprint, *arguments])

    def _count(self, script: str, fingerprint: str, keys: Iterable[str]) -> int:
        return sum(int(self._run(script, fingerprint, batch)) for batch in _batches(keys))

    def _fingerprints(self) -> set[str]:
        """Every model that has chunks or references here."""
        with self._calling():
            names = (name.decode() for name in self._client.scan_iter(f"{PREFIX}*", count=1000))
            found = (name.removeprefix(PREFIX).rpartition(":") for name in names)
            return {fingerprint for fingerprint, _, part in found if part in ("entries", "references")}

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Map the client's errors, and note whether the server is there."""
        self._outage.require_over()
        try:
            yield
        except (self._errors.ConnectionError, self._errors.TimeoutError) as error:
            raise self._outage.begin(str(error)) from error
        except self._errors.RedisError as error:
            if "OOM" in str(error) or "used memory" in str(error):
                raise StoreFullError(f"{self.name} is full ({error}); prune the store or raise maxmemory") from error
            raise StoreError(f"{self.name} refused: {error}") from error
        self._outage.end()


def _connect(url: str, timeout_s: float, options: dict[str, Any]) -> tuple[Any, Any]:
    """A client whose calls end, and the package's exceptions."""
    try:
        redis = import_module("redis")
        import_module("redis.retry")
    except ImportError as error:
        raise ConfigurationError(f"a store at {redacted(url)} needs redis: pip install 'samkv-rag[redis]'") from error
    url = re.sub("^valkey", "redis", url)
    # The client's own default tries ten times, which adds up to minutes; once more serves a connection gone stale.
    once_more = redis.retry.Retry(redis.backoff.NoBackoff(), 1, (redis.exceptions.ConnectionError,))
    ours = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": once_more}
    try:
        return redis.Redis.from_url(url, **ours | options, decode_responses=False), redis.exceptions
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"no store can be opened at {redacted(url)} ({error})") from error


def _chunk(key: str) -> str:
    return f"{PREFIX}chunk:{key}"


def _of(fingerprint: str, part: str) -> str:
    return f"{PREFIX}{fingerprint}:{part}"


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Parts of what a script is given, so that none keeps the server from others for long."""
    all_texts = list(texts)
    for start in range(0, len(all_texts), _BATCH):
        yield all_texts[start : start + _BATCH]


def _entry(text: bytes, key: str, fingerprint: str) -> Entry:
    entry = Entry.from_json(text.decode())
    if not entry.is_of(key, fingerprint):
        raise ValueError("its entry is another chunk's")
    return entry


def _readable(fingerprint: str, keys: Iterable[bytes], entries: Iterable[bytes | None]) -> Iterator[Entry]:
    for key, text in zip(keys, entries, strict=False):  # no entries were asked for where there are no keys
        with suppress(ValueError):  # of a release that says more, or less, of a chunk
            if text is not None:
                yield _entry(text, key.decode(), fingerprint)


def _texts(names: Iterable[bytes]) -> set[str]:
    return {name.decode() for name in names}


def _bytes(source: str) -> bytes:
    return source.encode("utf-8", "surrogatepass")  # paths that are no valid text hold lone surrogates


def _text(source: bytes) -> str:
    return source.decode("utf-8", "surrogatepass")
