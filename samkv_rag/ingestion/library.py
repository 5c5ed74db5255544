"""The chunks of one model in a store: added, found in prompts, read, removed."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

from samkv_rag.chunk_cache import ChunkCache, ChunkReader, Layout, chunk_key
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import (
    ChunkTooLongError,
    ConfigurationError,
    EmptyChunkError,
    StoreError,
    StoreUnreachableError,
)
from samkv_rag.ingestion.batching import Pending, batches
from samkv_rag.ingestion.bulk import collection_paused
from samkv_rag.ingestion.encoder import encode
from samkv_rag.ingestion.hints import Hint, Hints
from samkv_rag.ingestion.progress import chunk_progress
from samkv_rag.results import IngestionReport
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.tokenization import PromptTokenizer, printable
from samkv_rag.prompt.recognition import PREFIX_CHARS, ChunkIndex, KnownText, Match, describe, text_digest
from samkv_rag.store import Entry, KVStore, Origin

_MAX_HINTS = 10_000


class ChunkLibrary:
    """Chunks whose KV one model computed, in a store that other models and processes may share."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PromptTokenizer,
        store: KVStore,
        config: EngineConfig,
        fingerprint: str,
        origin: Origin,
        run: Callable[[Callable[[], list[ChunkCache]]], list[ChunkCache]],
    ) -> None:
        self._run = run
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._store = store
        self._config = config
        self._fingerprint = fingerprint
        self._origin = origin
        self._layout = Layout(
            config.initial_tokens,
            config.local_tokens,
            config.block_tokens,
            resume_layer=config.stored_resume_layer(decoder.num_layers),
        )
        self._lock = threading.RLock()
        self._hints = Hints()
        self._mark = 0
        self._forget()

    # -- what is there ---------------------------------------------------------------------------

    def has(self, text: str) -> bool:
        """Whether a chunk is stored and serves this configuration."""
        self._sync()
        return self.stores(text_digest(text.strip()))

    def stores(self, digest: str) -> bool:
        """Whether the chunk of this text digest served this configuration when the store was last looked at."""
        entry = self._entries.get(digest)
        return entry is not None and self._serves(entry.layout)

    def find(self, prompt: str) -> list[Match]:
        """Known chunks in ``prompt``."""
        self._sync()
        with self._lock:
            return self._index.find(prompt)

    def num_tokens(self, digest: str, text: str) -> int:
        """Tokens of a known chunk, without reading its KV."""
        entry = self._entries.get(digest)
        return entry.num_tokens if entry is not None else len(self._tokenizer.chunk_ids(text))

    # -- ingestion -------------------------------------------------------------------------------

    def add(
        self, texts: Iterable[str], show_progress: bool | None = None, sources: Sequence[str | None] | None = None
    ) -> IngestionReport:
        """Compute and store what is missing; then record that the n-th source refers to the n-th text.

        Raises:
            ConfigurationError: there is not one source, or None, for every text; nothing was computed.
            Else as :meth:`_add_missing`, with references as before.
        """
        cleaned = list(_cleaned(texts))
        if sources is None:
            return self._add_missing(cleaned, show_progress)
        references = self._references(cleaned, sources)
        report = self._add_missing(cleaned, show_progress)
        self._store.refer(self._fingerprint, references)
        # Whoever released the last other reference in between took the chunk with it.
        self._add_missing(cleaned, show_progress=False)
        return report

    def release(self, sources: Iterable[str], keep_texts: Iterable[str] = ()) -> int:
        """Forget sources, save the last ones of ``keep_texts``; delete chunks without any left, return how many."""
        going, keep = set(sources), self._keys(keep_texts)
        if keep:
            references = self._store.references(self._fingerprint)
            keep -= {key for source, key in references.items() if source not in going}
            going = {source for source in going if references.get(source) not in keep}
        return self._store.release(self._fingerprint, going)

    def sources(self) -> list[str]:
        """Every source that refers to a chunk."""
        return list(self._store.references(self._fingerprint))

    def _add_missing(self, texts: Iterable[str], show_progress: bool | None) -> IngestionReport:
        """Compute and store what is missing, in batches of like length.

        All texts are checked before any is computed. ``show_progress=None`` shows a bar on a
        terminal only.

        Raises:
            EmptyChunkError, ChunkTooLongError: nothing was computed.
            StoreError: no room, or no answer; the chunks stored until then stay.
        """
        started = time.perf_counter()
        unique = list(dict.fromkeys(texts))
        worthwhile = [text for text in unique if len(text) >= PREFIX_CHARS]
        self._sync()
        pending = [self._tokenised(text) for text in worthwhile if not self.stores(text_digest(text))]
        with chunk_progress(len(pending), show_progress) as bar:
            for text, cache in self._encoded(pending):
                self._store.put(self._entry(text, cache), cache)
                bar.update()
        self._store.flush()
        return IngestionReport(
            num_added=len(pending),
            num_reused=len(worthwhile) - len(pending),
            num_skipped=len(unique) - len(worthwhile),
            num_tokens=sum(len(item.token_ids) for item in pending),
            elapsed_s=time.perf_counter() - started,
        )

    def remove(self, texts: Iterable[str]) -> int:
        """Delete chunks and return how many were there."""
        return self._store.remove(self._keys(texts))

    def prune(self, keep_texts: Iterable[str], unreferenced_only: bool = False) -> int:
        """Delete this model's chunks that are not among ``keep_texts``; where asked, nor referred to."""
        keep = self._keys(keep_texts)
        self._sync()
        if unreferenced_only:  # read after the entries: a chunk is stored first and referred to then
            keep |= set(self._store.references(self._fingerprint).values())
        return self._store.remove(entry.key for entry in list(self._entries.values()) if entry.key not in keep)

    # -- reading ---------------------------------------------------------------------------------

    def hint(self, texts: Iterable[str]) -> Hint:
        """These chunks are about to appear in a prompt: recognise them, bring their KV nearer until it is read."""
        known = [describe(stripped) for text in texts if (stripped := text.strip())]
        self._sync()
        with self._lock:
            self._num_hints += len(known)
            if self._num_hints > _MAX_HINTS:
                self._forget()
            self._index.add(known)
        digests = [text.text_digest for text in known]
        hint = Hint(frozenset(digests), self._store.prefetch(map(self._key, digests), self._fingerprint))
        self._hints.note(hint)
        return hint

    def end_hints(self, digests: Iterable[str]) -> None:
        """A prompt with these chunks has been read, or given up: what was announced for it is read no more."""
        self._hints.end(digests)

    def read(self, texts: Sequence[str]) -> list[tuple[ChunkReader, bool]]:
        """Readers of ``texts``, and whether the store had them; what it lacks is computed and stored."""
        # All are on their way from a slow disk while the first is still being checked and computed with.
        prefetch = self._store.prefetch((self._key(text_digest(text)) for text in texts), self._fingerprint)
        try:
            readers = [self._open(text) for text in texts]
        finally:
            prefetch.cancel()
        missing = {text: reader for text, reader in zip(texts, readers, strict=True) if reader is None}
        computed = self._compute(list(missing)) if missing else {}
        return [(reader, True) if reader else (computed[t], False) for t, reader in zip(texts, readers, strict=True)]

    def _open(self, text: str) -> ChunkReader | None:
        reader = self._store.open(self._key(text_digest(text)), self._fingerprint)
        return reader if reader is not None and self._serves(reader.layout) else None

    def _compute(self, texts: list[str]) -> dict[str, ChunkCache]:
        computed = {}
        for text, cache in self._encoded([self._tokenised(text) for text in texts]):
            computed[text] = cache
            self._store_if_possible(text, cache)
        return computed

    def _store_if_possible(self, text: str, cache: ChunkCache) -> None:
        try:
            self._store.put(self._entry(text, cache), cache)
        except StoreError as error:  # the question at hand can be answered all the same
            warnings.warn(str(error), stacklevel=2)

    # -- helpers ---------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Take over what this or another process has changed in the store."""
        with self._lock, nullcontext() if self._mark else collection_paused():
            try:
                changes = self._store.changes(self._fingerprint, self._mark)
                if changes is None:
                    changes = self._store.changes(self._fingerprint, 0)
                    self._forget()
            except StoreUnreachableError:  # the store has warned of it; what is known is still worth a try
                return
            entries, self._mark = changes or ([], 0)
            self._entries.update((entry.text_digest, entry) for entry in entries)
            self._index.add(KnownText(e.text_digest, e.prefix, e.suffix, e.num_chars) for e in entries)

    def _forget(self) -> None:
        self._index = ChunkIndex()
        self._entries: dict[str, Entry] = {}
        self._mark = 0
        self._num_hints = 0

    def _serves(self, layout: Layout) -> bool:
        """Whether a chunk summarised in ``layout`` has all that this configuration reads."""
        return layout == self._layout

    def _references(self, texts: Sequence[str], sources: Sequence[str | None]) -> dict[str, str]:
        """Source to chunk key; of a source named twice the last text counts."""
        if isinstance(sources, str) or len(sources) != len(texts):
            raise ConfigurationError(f"{len(sources)} sources for {len(texts)} chunks; give a list of one for each")
        named = [(source, text) for source, text in zip(sources, texts, strict=True) if source is not None]
        if wrong := [source for source, _ in named if not isinstance(source, str) or not source]:
            raise ConfigurationError(f"source {wrong[0]!r} is no name; it must be a text that is not empty, or None")
        return {source: self._key(text_digest(text)) for source, text in named}

    def _keys(self, texts: Iterable[str]) -> set[str]:
        return {self._key(text_digest(text.strip())) for text in texts}

    def _key(self, digest: str) -> str:
        return chunk_key(self._fingerprint, digest)

    def _entry(self, text: str, cache: ChunkCache) -> Entry:
        known, num_tokens = describe(text), cache.num_tokens
        key, ends = self._key(known.text_digest), (known.prefix, known.suffix)
        return Entry(key, known.text_digest, *ends, known.num_chars, num_tokens, cache.layout, self._origin)

    def _encoded(self, pending: Sequence[Pending]) -> Iterator[tuple[str, ChunkCache]]:
        """Yield texts and their caches, computed batch by batch."""
        for batch in batches(pending, self._decoder.device.type):
            chunks = [item.token_ids for item in batch]
            caches = self._run(partial(encode, self._decoder, chunks, self._layout, self._fingerprint, self._config.kv_dtype))
            yield from zip((item.text for item in batch), caches, strict=True)

    def _tokenised(self, text: str) -> Pending:
        ids, limit = self._tokenizer.chunk_ids(text), self._decoder.context_window
        if len(ids) >= limit:
            raise ChunkTooLongError(
                f"chunk {printable(text)!r} has {len(ids)} tokens, the model's context window is {limit}; "
                "split it into smaller chunks"
            )
        return Pending(text, ids)


def _cleaned(texts: Iterable[str]) -> Iterator[str]:
    """Strip white space around chunks, as frameworks do before they put them into a prompt."""
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise EmptyChunkError(f"chunk {number} is {text!r}; it must be text that is not only white space")
        yield text.strip()
