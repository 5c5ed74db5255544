"""Adds, announces, finds, reads and removes the chunks of one model in a store."""

from __future__ import annotations

import logging
import reprlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import TypeVar

from tqdm import tqdm

from samkv_rag.checks import require_unicode
from samkv_rag.chunk_cache import ChunkCache, ChunkReader, ChunkShape, SummarySpec, chunk_key, score_layers
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import (
    ChunkTooLongError,
    ConfigurationError,
    DamagedChunkError,
    DamagedChunkWarning,
    EmptyChunkError,
    StoreError,
    StoreFullError,
    StoreUnreachableError,
)
from samkv_rag.forking import ProcessLock
from samkv_rag.ingestion.encoder import encode, encode_beginning
from samkv_rag.ingestion.recognition import ChunkIndex, Match, describe, text_digest
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.openmp import compute_alone
from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.results import IngestionEstimate, IngestionReport
from samkv_rag.store.base import BytesBlob, Store
from samkv_rag.store.catalog import Catalog, KnownText
from samkv_rag.store.codec import PREFIX_CHARS, ChunkIdentity, StoredChunk, encode_chunk, encoded_bytes, open_chunk

logger = logging.getLogger(__name__)

_MAX_REMEMBERED = 10_000
"""Limit of the texts that are recognised because they were announced, and of other memories; the store has none."""
_MAX_ANNOUNCEMENTS = 256
_MAX_KNOWN = 100_000
"""Texts that are recognised after their KV was evicted."""
_FORGET_AFTER = 10_000
"""Evictions until older ones are forgotten again."""
_PARALLEL = 16
"""Chunks requested at once from a remote store."""
_DOUBTED = object()
"""Stands for the identity of a blob that must be verified at its next read."""
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}

T = TypeVar("T")
Run = Callable[[Callable[[], list[ChunkCache]]], list[ChunkCache]]
"""Runs a function in the thread that owns the model."""


@dataclass(frozen=True)
class Announcement:
    """The chunks of an expected prompt. Cancel it if the prompt will not come."""

    digests: frozenset[str]
    cancel: Callable[[], None]
    """Stop prefetching; running reads finish. May be called repeatedly."""


class ChunkLibrary:
    """The chunks of one model, in a store that other models and processes may share."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PromptTokenizer,
        store: Store,
        blank: ChunkIdentity,
        spec: SummarySpec,
        preamble_ids: Sequence[int],
        config: EngineConfig,
        run: Run,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._store = store
        self._blank = blank
        """The identity of a chunk without text."""
        self._fingerprint = blank.fingerprint
        """Of model, tokenizer, summary and tenant; part of every key."""
        self._config = config
        self._run = run
        self._preamble_ids = preamble_ids
        self._preamble: ChunkCache | None = None
        self._used_once: OrderedDict[str, bool] = OrderedDict()
        self._catalog = Catalog(store)
        self._shape = ChunkShape(
            decoder.num_layers,
            decoder.num_heads,
            decoder.num_kv_heads,
            decoder.head_dim,
            len(tokenizer.tokenizer),
            decoder.dtype,
            spec,
        )
        self._lock = ProcessLock()
        self._index = ChunkIndex()
        self._num_evicted = 0
        """The store's count when evicted chunks were forgotten last."""
        self._announced: OrderedDict[str, bool] = OrderedDict()
        self._announcements: list[Announcement] = []
        self._checked: OrderedDict[str, tuple[object, set[str]]] = OrderedDict()
        """Maps a key to the identity of the checked blob, or ``_DOUBTED``, and the names of its checked tensors."""

    # Looking up

    def has(self, text: str) -> bool:
        (cleaned,) = clean_texts([text])
        return bool(self._store.contains([self._key(text_digest(cleaned))]))

    def knows(self, digest: str) -> bool:
        """Whether the chunk of this text digest is known as stored, not only announced."""
        with self._lock:
            return self._index.get(digest) is not None and digest not in self._announced

    def find(self, prompt: str) -> list[Match]:
        with self._lock:
            self._sync()
            return self._index.find(prompt)

    @property
    def first_position(self) -> int:
        """Position of a chunk's first token when its keys are computed: right after the preamble."""
        return len(self._preamble_ids)

    def num_tokens(self, digest: str, text: str) -> int:
        """Count the tokens of a chunk without reading its KV."""
        with self._lock:
            known = self._index.get(digest)
        return known.num_tokens if known and known.num_tokens else len(self._tokenizer.chunk_ids(text))

    # Ingestion

    def estimate(self, texts: Iterable[str]) -> IngestionEstimate:
        """Estimate what :meth:`add` would compute and store; raises the same errors."""
        return self._pending(clean_texts(texts))[2]

    def _pending(self, cleaned: Iterable[str]) -> tuple[list[str], dict[str, list[int]], IngestionEstimate]:
        """Return the stored texts, the token ids of the others, and their cost; skip too short texts."""
        keys = {text: self._key(text_digest(text)) for text in cleaned if len(text) >= PREFIX_CHARS}
        stored = self._store.contains(keys.values())
        pending = self._tokenised(text for text, key in keys.items() if key not in stored)
        lengths = [len(ids) for ids in pending.values()]
        num_bytes = sum(encoded_bytes(self._shape, length, self._config.kv_dtype) for length in lengths)
        estimate = IngestionEstimate(len(lengths), sum(lengths), num_bytes)
        return [text for text, key in keys.items() if key in stored], pending, estimate

    def add(
        self,
        texts: Iterable[str],
        show_progress: bool | None = None,
        sources: Sequence[str | None] | None = None,
        max_bytes: int | None = None,
    ) -> IngestionReport:
        """Compute and store missing chunks; then record that the n-th source refers to the n-th text.

        All texts are checked before any is computed. See ``SamKVEngine.add_chunks`` for the errors.
        """
        cleaned = list(clean_texts(texts))
        references = self._references(cleaned, sources)
        started = time.perf_counter()
        known, pending, estimate = self._pending(cleaned)
        if max_bytes is not None and estimate.num_bytes > max_bytes:
            raise StoreFullError(
                f"{estimate.num_chunks:,} new chunks of {estimate.num_tokens:,} tokens would take about "
                f"{estimate.num_bytes:,} bytes, the limit is {max_bytes:,}; raise max_bytes or give fewer texts"
                + ("" if self._config.storage == "index" else ", or open the engine with storage='index'")
            )
        disable = None if show_progress is None and pending else not (show_progress and pending)
        with tqdm(total=len(pending), desc="Caching chunks", unit="chunk", disable=disable) as bar:
            written, num_bytes = self._store_all(pending, bar.update)
        self._write_down(known)
        self._store.flush(written)
        if references:
            unreferenced = self._catalog.refer(self._fingerprint, references) - self._keys(cleaned)
            self._delete_unreferenced(unreferenced)
            # Until here, another process could delete a chunk together with its last source.
            if deleted := self._catalog.missing(references.values()):
                again = [t for t in cleaned if len(t) >= PREFIX_CHARS and self._key(text_digest(t)) in deleted]
                self._store.flush(self._store_all(self._tokenised(again))[0])
        if pending:
            logger.info("stored %d chunks in %d bytes, reused %d", len(pending), num_bytes, len(known))
        return IngestionReport(
            num_added=len(pending),
            num_reused=len(known),
            num_skipped=len(set(cleaned)) - len(pending) - len(known),
            num_tokens=estimate.num_tokens,
            elapsed_s=time.perf_counter() - started,
            num_bytes=num_bytes,
        )

    # Forgetting

    def release(self, sources: Iterable[str], keep_texts: Iterable[str] = ()) -> int:
        """Forget sources, except the last ones of ``keep_texts``; delete chunks without a source, return how many."""
        going, keep = _require_names(sources), self._keys(keep_texts)
        if keep:
            references = self.references()
            keep -= {key for source, key in references.items() if source not in going}
            going = {source for source in going if references.get(source) not in keep}
        return self._delete_unreferenced(self._catalog.release(self._fingerprint, going))

    def references(self) -> dict[str, str]:
        """Return the chunk key of every source."""
        return self._catalog.sources(self._fingerprint)

    def remove(self, texts: Iterable[str]) -> int:
        """Delete chunks, also from a shared store, and return how many existed."""
        return self._delete(self._keys(texts))

    def prune(self, keep_texts: Iterable[str], unreferenced_only: bool = False) -> int:
        """Delete this model's chunks that are not in ``keep_texts``, or only those of them without a source."""
        keep = self._keys(keep_texts)
        known = {chunk.key for chunk in self._catalog.chunks(self._fingerprint)}
        if unreferenced_only:  # read after the chunks, because a chunk is stored before its source
            keep |= set(self.references().values())
        return self._delete(known - keep)

    # Reading

    def announce(self, texts: Iterable[str]) -> Announcement:
        """Recognise these chunks in coming prompts, and prefetch their KV until such a prompt is read.

        A text that is mostly a stored chunk stands for that chunk: knowledge graphs put facts before a chunk, other
        ones for every question, and the KV of the whole would never be used again.
        """
        cleaned = [text for text in clean_texts(texts, empty_too=True) if len(text) >= PREFIX_CHARS]
        with self._lock:
            self._sync()
            known = [self._most_of(text) or describe(text) for text in cleaned]
            for text in known:
                if not self.knows(text.digest):
                    self._index.remove(_remember(self._announced, text.digest, True))
                if not self._index.has(text):
                    self._index.add([text])
        digests = frozenset(text.digest for text in known)
        announcement = Announcement(digests, self._store.prefetch(map(self._key, digests)))
        with self._lock:
            self._announcements.append(announcement)
            if len(self._announcements) > _MAX_ANNOUNCEMENTS:
                self._announcements.pop(0).cancel()
        return announcement

    def _most_of(self, text: str) -> KnownText | None:
        """Return the stored chunk that makes up at least half of ``text``, if there is one."""
        found = [match for match in self._index.find(text) if 2 * (match.stop - match.start) >= len(text)]
        return self._index.get(found[0].text_digest) if found and self.knows(found[0].text_digest) else None

    def end_announcements(self, digests: Iterable[str]) -> None:
        """Cancel the announcements of a prompt that has been read: all that share one of its chunks."""
        read = set(digests)
        with self._lock:
            ended = [one for one in self._announcements if not read.isdisjoint(one.digests)]
            self._announcements = [one for one in self._announcements if read.isdisjoint(one.digests)]
        for announcement in ended:
            announcement.cancel()

    def read(self, texts: Sequence[str], whole: bool = True, in_memory: bool = False) -> list[tuple[ChunkReader, bool]]:
        """Return readers of ``texts``, and whether each was stored; missing chunks are computed and stored.

        Unless ``whole``, the caller reads only what ``Scout`` selects by. With ``in_memory``, stored chunks are loaded
        before others are stored, which may evict them.
        """
        # A slow disk reads all of them while the first is still being checked.
        stop_prefetch = self._store.prefetch(self._key(text_digest(text)) for text in texts)
        try:
            if self._store.shared and len(texts) > 1:
                with ThreadPoolExecutor(min(_PARALLEL, len(texts)), "samkv-open", compute_alone) as pool:
                    readers = list(pool.map(self._open, texts, repeat(whole), repeat(in_memory)))
            else:
                readers = [self._open(text, whole, in_memory) for text in texts]
        finally:
            stop_prefetch()
        computed = self._compute([text for text, reader in zip(texts, readers, strict=True) if reader is None])
        return [(reader, True) if reader else (computed[t], False) for t, reader in zip(texts, readers, strict=True)]

    def distrust(self, texts: Iterable[str]) -> None:
        """Verify these chunks at their next read, because one of them is damaged."""
        with self._lock:
            for text in texts:
                _remember(self._checked, self._key(text_digest(text)), (_DOUBTED, set()))

    def close(self) -> None:
        """Close the catalog. The store's owner closes the store."""
        self._catalog.close()

    def _open(self, text: str, whole: bool, in_memory: bool) -> ChunkReader | None:
        key = self._key(text_digest(text))
        try:
            chunk = open_chunk(self._store, key, None if whole else self._num_bytes_to_select(text))
            if chunk is not None:
                if in_memory or chunk.storage == "index":  # methods read all of an index
                    chunk.load()
                self._check(key, text, chunk)
            return chunk
        except StoreUnreachableError:  # the store has warned already
            return None
        except DamagedChunkError as error:
            warnings.warn(
                f"chunk {key} cannot be trusted: {error}; it is computed again",
                DamagedChunkWarning,
                stacklevel=2,
            )
            return None

    def _num_bytes_to_select(self, text: str) -> int:
        """Return an upper bound of the bytes up to the last layer that ``Scout`` selects by."""
        num_tokens, num_layers = self.num_tokens(text_digest(text), text), score_layers(self._shape.num_layers).stop
        num_bytes = encoded_bytes(self._shape, num_tokens, self._config.kv_dtype, num_layers)
        return num_bytes + num_bytes // 50 + 4096

    def _check(self, key: str, text: str, chunk: StoredChunk) -> None:
        """Compare a chunk's metadata with its text and model, unless this process has checked the same blob before.

        The checksums of its KV are compared as it is read, or all at once here if the chunk is doubted.
        """
        with self._lock:
            identity, checked = self._checked.get(key, (None, chunk.checked))
        if identity == chunk.blob.identity:
            chunk.checked = checked
            return
        if identity is _DOUBTED or chunk.storage == "index":  # an index is in memory already
            chunk.verify()
        token_ids = self._tokenizer.chunk_ids(text)
        chunk.require(self._shape, token_ids)
        wanted = self._identity(text, len(token_ids))
        if replace(chunk.identity, model_name=wanted.model_name) != wanted:  # a model may have several names
            raise DamagedChunkError("its metadata is not that of its text")
        with self._lock:
            _remember(self._checked, key, (chunk.blob.identity, chunk.checked))

    def _compute(self, texts: Iterable[str]) -> dict[str, ChunkReader]:
        """Compute chunks and return readers of their encoded form, so that a first answer equals later ones."""
        computed: dict[str, ChunkReader] = {}
        for text, cache in self._encoded(self._tokenised(texts)):
            computed[text] = cache
            try:
                identity, data = self._encode(text, cache)
                computed[text] = StoredChunk(BytesBlob(data))
                if self._admits(identity.key):
                    self._put(identity, data)
            except StoreUnreachableError:  # the store has warned already
                pass
            except StoreError as error:  # the prompt can be answered without storing
                warnings.warn(str(error), stacklevel=2)
        return computed

    # Helpers

    def _sync(self) -> None:
        """Index the texts that any process has added to the catalog."""
        news = self._catalog.news(self._fingerprint)
        for text in news:
            self._announced.pop(text.digest, None)
        self._index.add(news)

    def _encode(self, text: str, cache: ChunkCache) -> tuple[ChunkIdentity, bytes]:
        identity = self._identity(text, cache.num_tokens)
        return identity, encode_chunk(cache, identity, self._config.kv_dtype, self._config.storage)

    def _store_all(
        self, pending: dict[str, list[int]], advance: Callable[[], object] = lambda: None
    ) -> tuple[list[str], int]:
        """Compute and store chunks; return their keys, and how many bytes they take together."""
        written, num_bytes = list[str](), 0
        for text, cache in self._encoded(pending):
            identity, data = self._encode(text, cache)
            self._put(identity, data)
            written.append(identity.key)
            num_bytes += len(data)
            advance()
        return written, num_bytes

    def _put(self, identity: ChunkIdentity, data: bytes) -> None:
        self._store.put(identity.key, data)
        self._catalog.add([identity])
        if not self._store.shared and self._store.num_evicted >= self._num_evicted + _FORGET_AFTER:
            self._forget_evicted()

    def _forget_evicted(self) -> None:
        """Forget the oldest evicted chunks without a source: a stream of new texts must not fill the memory."""
        self._num_evicted = self._store.num_evicted
        oldest = self._catalog.chunks(self._fingerprint)[:-_MAX_KNOWN]
        known = {chunk.key for chunk in oldest} - {*self.references().values()}
        self._forget(known - self._store.contains(known))

    def _admits(self, key: str) -> bool:
        """Whether to store a chunk that came with a prompt; remembers its first use."""
        with self._lock:
            if self._config.admit == "always" or self._used_once.pop(key, False):
                return True
            _remember(self._used_once, key, True)
            return False

    def _write_down(self, texts: Sequence[str]) -> None:
        """Add stored texts to the catalog if they are missing or wrong there, as when another machine stored them."""
        described = {text: describe(text) for text in texts}
        with self._lock:
            self._sync()
            unknown = [t for t, one in described.items() if not (self.knows(one.digest) and self._index.has(one))]
        self._catalog.add(self._identity(text, len(self._tokenizer.chunk_ids(text))) for text in unknown)

    def _delete(self, keys: set[str]) -> int:
        """Delete chunks, also from a shared store, and forget them."""
        num_deleted = self._store.delete(keys) if keys else 0
        self._forget(keys)
        return num_deleted

    def _delete_unreferenced(self, keys: set[str]) -> int:
        """Forget those chunks that still have no source, and delete them unless the store is shared."""
        num_deleted = 0

        def delete(going: set[str]) -> None:
            nonlocal num_deleted
            num_deleted = 0 if self._store.shared else self._store.delete(going)

        self._forget(keys, delete)
        return num_deleted

    def _forget(self, keys: set[str], delete: Callable[[set[str]], object] | None = None) -> None:
        if not keys:
            return
        gone, digests = self._catalog.remove(keys, delete)
        with self._lock:
            digests += [digest for digest in self._announced if self._key(digest) in gone]
            self._index.remove(digests)
            for digest in digests:
                self._announced.pop(digest, None)

    def _references(self, texts: Sequence[str], sources: Sequence[str | None] | None) -> dict[str, str]:
        """Map each source to its chunk key. If a source occurs twice, its last text counts."""
        if sources is None:
            return {}
        if isinstance(sources, str) or len(sources) != len(texts):
            raise ConfigurationError(f"{len(sources)} sources for {len(texts)} chunks; give a list of one for each")
        named = [(source, text) for source, text in zip(sources, texts, strict=True) if source is not None]
        _require_names(source for source, _ in named)
        return {source: self._key(text_digest(text)) for source, text in named}

    def _keys(self, texts: Iterable[str]) -> set[str]:
        return {self._key(text_digest(text)) for text in clean_texts(texts, empty_too=True)}

    def _key(self, digest: str) -> str:
        return chunk_key(self._fingerprint, digest)

    def _identity(self, text: str, num_tokens: int) -> ChunkIdentity:
        return replace(self._blank, **describe(text, num_tokens)._asdict())

    def _tokenised(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Return the token ids of texts whose KV will be computed."""
        pending, limit = {text: self._tokenizer.chunk_ids(text) for text in texts}, self._decoder.context_window
        for text, ids in pending.items():
            if self.first_position + len(ids) >= limit:
                raise ChunkTooLongError(
                    f"chunk {reprlib.repr(text)} has {len(ids)} tokens behind a preamble of {self.first_position}, "
                    f"the model's context window is {limit}; split it into smaller chunks"
                )
        return pending

    def _encoded(self, pending: dict[str, list[int]]) -> Iterator[tuple[str, ChunkCache]]:
        """Yield texts and their caches, computed batch by batch."""

        def compute(texts: list[str]) -> list[ChunkCache]:
            if self._preamble_ids and self._preamble is None:
                self._preamble = encode_beginning(self._decoder, self._preamble_ids)
            return encode(self._decoder, [pending[text] for text in texts], self._shape.spec, self._preamble)

        for texts in _batches(pending, self._decoder.device.type):
            yield from zip(texts, self._run(partial(compute, texts)), strict=True)


def _remember(memory: OrderedDict[str, T], key: str, value: T) -> list[str]:
    """Put ``value`` last, drop the oldest entries above the limit, and return their keys."""
    memory[key] = value
    memory.move_to_end(key)
    return [memory.popitem(last=False)[0] for _ in range(len(memory) - _MAX_REMEMBERED)]


def _batches(pending: dict[str, list[int]], device_type: str) -> Iterator[list[str]]:
    """Yield batches of texts of similar length, with a limit of tokens that includes padding."""
    batch_tokens = _BATCH_TOKENS.get(device_type, _BATCH_TOKENS["cpu"])
    batch: list[str] = []
    for text in sorted(pending, key=lambda text: len(pending[text])):
        if batch and (len(batch) + 1) * len(pending[text]) > batch_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _require_names(sources: Iterable[str]) -> set[str]:
    names = list(sources)
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise ConfigurationError(f"source {wrong[0]!r} is not a name; it must be text that is not empty")
    for name in names:
        require_unicode(f"source {name!r}", name, ConfigurationError)
    return set(names)


def clean_texts(texts: Iterable[str], empty_too: bool = False) -> Iterator[str]:
    """Strip white space around chunks, as frameworks do before they put them into a prompt."""
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not (text.strip() or empty_too):
            raise EmptyChunkError(f"chunk {number} is {text!r}; it must be text that is not only white space")
        require_unicode(f"chunk {number}", text, EmptyChunkError)
        yield text.strip()
