"""The passages of files: in an index for retrieval, their KV in the engine's store; both in step with the files."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from samkv_rag.ask.embedding import Embed, embed_query
from samkv_rag.ask.index import PassageIndex, StoredPassage
from samkv_rag.ask.screen import Screen
from samkv_rag.documents.files import FoundFiles
from samkv_rag.documents.reading import load, parse, require_some
from samkv_rag.documents.splitting import VERSION, split_document
from samkv_rag.engine import SamKVEngine
from samkv_rag.exceptions import ChunkError, StoreFullError
from samkv_rag.prompt.recognition import PREFIX_CHARS, text_digest
from samkv_rag.serving.sources import ids_of, source_names

T = TypeVar("T")

_EMBEDDED_AT_ONCE = 8
_COMPUTED_AT_ONCE = 8  # about a batch on a CPU


@dataclass(frozen=True)
class Update:
    """What bringing a library into step with its files took."""

    num_files: int
    num_passages: int
    num_read: int
    """Files that were new or had changed."""
    num_embedded: int
    num_computed: int
    """Passages whose KV was computed; that of all others was stored."""
    num_removed: int
    """Passages whose KV was deleted, as they stand in no file any more."""
    problems: tuple[str, ...]
    """Files left out, and why."""
    elapsed_s: float


class Library:
    """The passages of one set of files, for one model. ``scope`` tells its chunks in a store from those of others."""

    def __init__(self, index: PassageIndex, engine: SamKVEngine, embed: Embed, scope: str, folder: Path) -> None:
        self._index = index
        self._engine = engine
        self._embed = embed
        self._scope = f"ask-{scope}"
        self._folder = folder

    def update(self, found: FoundFiles, screen: Screen) -> Update:
        """Read what is new or has changed, and forget what is gone.

        Each step stores what it has, so that one cut short goes on where it was. One process at a time.

        Raises:
            ChunkError: no file can be read; what is stored stays.
            StoreFullError: no room; what was stored stays.
        """
        started = time.perf_counter()
        num_read, problems = self._read(found.files, screen)
        num_embedded = self._embed_new(screen)
        passages = self._index.passages()
        num_computed = self._compute_missing(passages, screen)
        num_removed = self._engine.remove_sources(self._stale_sources(passages))
        return Update(
            num_files=len(found.files) - len(problems),
            num_passages=len(passages),
            num_read=num_read,
            num_embedded=num_embedded,
            num_computed=num_computed,
            num_removed=num_removed,
            problems=(*found.problems, *problems),
            elapsed_s=time.perf_counter() - started,
        )

    def search(self, question: str, top_k: int) -> list[tuple[StoredPassage, float]]:
        """The passages nearest to a question, best first, and their cosines."""
        return self._index.search(embed_query(self._embed, question), top_k)

    # -- steps -------------------------------------------------------------------------------------

    def _read(self, files: Sequence[Path], screen: Screen) -> tuple[int, list[str]]:
        known = self._index.digests()
        readable: dict[str, bool] = {}
        errors: list[ChunkError] = []
        with screen.bar(len(files), "Reading files") as advance:
            for file in files:
                try:
                    readable[path_name(file)] = self._read_if_changed(file, known)
                except ChunkError as error:
                    errors.append(error)
                advance(1)
        require_some(len(readable), errors)
        self._index.keep_only(readable)
        return sum(readable.values()), [str(error).encode("utf-8", "replace").decode() for error in errors]

    def _read_if_changed(self, file: Path, known: dict[str, str]) -> bool:
        data, name = load(file), path_name(file)
        digest = hashlib.sha256(b"%d\n" % VERSION + data).hexdigest()
        if known.get(name) == digest:
            return False
        chunks = split_document(parse(file, data), self._engine.tokenize)
        self._index.replace(name, digest, [(chunk, self._engine.count_tokens(chunk.text)) for chunk in chunks])
        return True

    def _embed_new(self, screen: Screen) -> int:
        texts = self._index.not_embedded()
        with screen.bar(len(texts), "Embedding passages") as advance:
            for batch in _batches(texts, _EMBEDDED_AT_ONCE):
                self._index.add_vectors([(text, self._embed(text)) for text in batch])
                advance(len(batch))
        return len(texts)

    def _compute_missing(self, passages: Sequence[StoredPassage], screen: Screen) -> int:
        known = set(self._engine.sources())
        missing = [passage for passage in passages if not self._is_computed(passage, known)]
        self._require_room([passage for passage in missing if not self._engine.has_chunk(passage.text)])
        num_computed = 0
        with screen.bar(len(missing), "Computing KV") as advance:
            for batch in _batches(missing, _COMPUTED_AT_ONCE):
                num_computed += self._compute(batch)
                advance(len(batch))
        return num_computed

    def _compute(self, passages: Sequence[StoredPassage]) -> int:
        sources = [(source, passage.text) for passage in passages for source in self._sources(passage)]
        names, texts = zip(*sources, strict=True)
        return self._engine.add_chunks(texts, sources=names, show_progress=False).num_added

    def _is_computed(self, passage: StoredPassage, known_sources: set[str]) -> bool:
        is_cached = len(passage.text) < PREFIX_CHARS or self._engine.has_chunk(passage.text)
        return is_cached and known_sources.issuperset(self._sources(passage))

    def _stale_sources(self, passages: Sequence[StoredPassage]) -> set[str]:
        mine = source_names(self._scope, ids_of(self._scope, self._engine.sources()))
        return set(mine).difference(source for passage in passages for source in self._sources(passage))

    def _sources(self, passage: StoredPassage) -> list[str]:
        digest = text_digest(passage.text)
        return source_names(self._scope, [f"{digest}/{place.path}" for place in passage.places])

    def _require_room(self, passages: Sequence[StoredPassage]) -> None:
        num_tokens = sum(passage.num_tokens for passage in passages)
        needed, free = num_tokens * self._engine.decoder.kv_bytes_per_token, shutil.disk_usage(self._folder).free
        if needed > free:
            raise StoreFullError(
                f"the KV of {len(passages):,} new passages ({num_tokens:,} tokens) takes {needed / 1e9:,.1f} GB, "
                f"{self._folder} has room for {free / 1e9:,.1f} GB; ask about fewer files or give another --store"
            )


def path_name(file: Path) -> str:
    """A file's absolute path as text that any database takes, bytes that are no UTF-8 escaped."""
    return os.fsencode(os.path.abspath(file)).decode("utf-8", "backslashreplace")


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
