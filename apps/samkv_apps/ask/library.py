"""An ordinary LlamaIndex pipeline over your documents, with Chroma and a query engine."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import typer
from filelock import FileLock
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import similarity
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.samkv import SamKVLLM, SamKVPostprocessor, SamKVVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore

from samkv_apps.ask.reading import cached_tokenizer, read_documents
from samkv_apps.store.command import format_bytes, parse_bytes
from samkv_apps.terminal import open_chroma
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, ModelNotFoundError, StoreFullError
from samkv_rag.store.codec import PREFIX_CHARS
from samkv_rag.store.disk import written_whole

CHUNK_TOKENS = 256
_PROBE = "The tide turns at noon."
"""Its embedding tells whether two names are of one model."""
_MOST_FILES = 10_000
"""Chroma refuses a filter of more than 32,766 values."""
Compute = Callable[[Sequence[str]], object]
"""Computes the KV of texts and writes it to the library's store."""


class _Estimate(TransformComponent):
    """Prints how large the chunks' KV will be, refuses too much, and passes the chunks on.

    ``compute``, if given, is called with their texts.
    """

    engine: Any
    max_bytes: int | None
    compute: Any

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        needed = self.engine.estimate_chunks([node.get_content() for node in nodes])
        figures = (
            f"{needed.num_chunks:,} new chunks of {needed.num_tokens:,} tokens take about "
            f"{format_bytes(needed.num_bytes)}, {format_bytes(needed.bytes_per_token)} a token"
        )
        if self.max_bytes is not None and needed.num_bytes > self.max_bytes:
            limit = format_bytes(self.max_bytes)
            raise StoreFullError(f"{figures}; the limit is {limit}. Raise --max-bytes, or give --storage index")
        if needed.num_chunks and sys.stderr.isatty():
            typer.echo(figures, err=True)
        if self.compute is not None and needed.num_chunks:
            self.compute([node.get_content() for node in nodes])
        return nodes


class _Vectors(ChromaVectorStore):
    """Adds as many nodes at once as Chroma takes; LlamaIndex adds more, which Chroma refuses."""

    _most_at_once: int = PrivateAttr()

    def __init__(self, collection: Any, most_at_once: int) -> None:
        super().__init__(chroma_collection=collection)
        self._most_at_once = most_at_once

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        parts = [list(nodes[start : start + self._most_at_once]) for start in range(0, len(nodes), self._most_at_once)]
        return [node_id for part in parts for node_id in super(_Vectors, self).add(part, **kwargs)]


class Library:
    """The documents in ``folder``: their KV, their embeddings in Chroma, and a list of them.

    Namespaces have nothing in common: each has an own folder inside, named by a hash.
    """

    def __init__(self, engine: SamKVEngine, folder: Path, embedding: str, max_tokens: int) -> None:
        self.llm = SamKVLLM.from_engine(engine, max_tokens=max_tokens)
        Settings.llm, Settings.tokenizer = self.llm, cached_tokenizer(self.llm.tokenizer)
        try:
            Settings.embed_model = HuggingFaceEmbedding(model_name=embedding)
        except OSError as error:
            raise ModelNotFoundError(f"no embedding model could be loaded: {error}; give --embedding demo") from error
        if engine.namespace:
            folder /= f"namespace-{sha256(engine.namespace.encode()).hexdigest()[:16]}"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = Settings.embed_model.get_text_embedding(_PROBE)
        chroma = open_chroma(folder.resolve() / "chroma")
        collection = chroma.get_or_create_collection(
            "documents", metadata={"hnsw:space": "cosine", "embedding": embedding, "probe": json.dumps(probe)}
        )
        known = collection.metadata
        if not _is_near(json.loads(known["probe"]), probe):
            raise ConfigurationError(
                f"the embeddings in {folder} were made with {known['embedding']}, and those of {embedding} differ; "
                "give --embedding as then, or another --store"
            )
        self._vectors = SamKVVectorStore(_Vectors(collection, chroma.get_max_batch_size()), self.llm)
        self._docstore_file = folder / "documents.json"
        self._unfinished_file = folder / "unfinished.json"
        """Names of documents that an update deletes and adds, until it ends."""
        self._known_files: set[Path] = set()
        self._one_update = FileLock(folder / "update.lock")

    def update(
        self,
        files: Sequence[Path],
        max_bytes: str | None = None,
        compute: Compute | None = None,
        folders: Iterable[Path] = (),
    ) -> int:
        """Ingest what is new or changed in ``files``, and return the number of new chunks.

        The KV is computed here or by ``compute``. A terminal shows its size in advance. Documents whose files are gone
        from ``folders``, or from beside ``files``, are forgotten.

        Raises:
            ConfigurationError: ``max_bytes`` is not a size such as ``"10GB"``.
            StoreFullError: the new chunks' KV would exceed ``max_bytes``.
        """
        limit = None if max_bytes is None else parse_bytes(max_bytes)
        with self._one_update:
            return self._update(files, {*folders}, _Estimate(engine=self.llm.engine, max_bytes=limit, compute=compute))

    def _update(self, files: Sequence[Path], folders: set[Path], estimate: _Estimate) -> int:
        docstore, unfinished = self._read_lists()
        if not docstore.docs and self._vectors.client.count():  # the list was lost; every document would be there twice
            self._vectors.vector_store.clear()
        pipeline = IngestionPipeline(
            transformations=[
                SentenceSplitter(chunk_size=CHUNK_TOKENS, chunk_overlap=0),
                estimate,
                Settings.embed_model,
            ],
            docstore=docstore,
            docstore_strategy=DocstoreStrategy.UPSERTS,
            vector_store=self._vectors,
            disable_cache=True,
        )
        documents = list(read_documents(files))
        self._forget(docstore, unfinished, files, folders, {document.doc_id: document.hash for document in documents})
        num_new = len(pipeline.run(documents=documents))
        # Another model, or an engine whose store was cleared, has no KV of documents that are known.
        parts = [files[start : start + _MOST_FILES] for start in range(0, len(files), _MOST_FILES)]
        nodes = [node for part in parts for node in self._vectors.get_nodes(None, _of_files(part))]
        stored = [node for node in nodes if len(node.get_content().strip()) >= PREFIX_CHARS]
        if missing := [node for node in stored if not self.llm.engine.has_chunk(node.get_content())]:
            estimate(missing)
            self._vectors.ingest(missing)
        if self._unfinished_file.exists():  # else nothing has changed, and a full disk does not matter
            self._persist(docstore)
            self._unfinished_file.unlink()
        self._known_files = {_file_of(doc_id) for doc_id in docstore.docs}
        return num_new + len(missing)

    def ask(self, question: str, files: Sequence[Path], top_k: int) -> Any:
        """Return a streaming response from chunks of ``files`` only."""
        index = VectorStoreIndex.from_vector_store(self._vectors)
        query_engine = index.as_query_engine(
            streaming=True,
            similarity_top_k=top_k,
            filters=None if len(files) > _MOST_FILES and self._known_files <= {*files} else _of_files(files),
            node_postprocessors=[SamKVPostprocessor(self.llm)],
        )
        return query_engine.query(question)

    def _read_lists(self) -> tuple[SimpleDocumentStore, set[str]]:
        """Return the list of documents, and the names of those that an interrupted update left half done."""
        docstore, unfinished = SimpleDocumentStore(), set[str]()
        try:
            if self._docstore_file.exists():
                docstore = SimpleDocumentStore.from_persist_path(str(self._docstore_file))
            if self._unfinished_file.exists():
                unfinished = set(json.loads(self._unfinished_file.read_text("utf-8")))
        except (ValueError, AttributeError, TypeError):
            place = self._docstore_file.parent
            warnings.warn(f"the list of documents in {place} is damaged; it is made again", stacklevel=4)
            return SimpleDocumentStore(), set()
        return docstore, unfinished

    def _forget(
        self,
        docstore: SimpleDocumentStore,
        unfinished: set[str],
        files: Sequence[Path],
        folders: set[Path],
        there: Mapping[str, str],
    ) -> None:
        """Delete the documents that these files no longer contain, and those of files that are gone from beside them.

        ``there`` has the hashes of the documents in the files. Documents that an interrupted update left half done are
        deleted as well, and so added again.
        """
        given, beside = set(files), {file.parent for file in files}
        of_file = {doc_id: _file_of(doc_id) for doc_id in docstore.docs}
        is_own = {
            file: file in given or ((file.parent in beside or not folders.isdisjoint(file.parents)) and _is_gone(file))
            for file in of_file.values()
        }
        own = [doc_id for doc_id, file in of_file.items() if is_own[file]]
        gone = {doc_id for doc_id in own if docstore.get_document_hash(doc_id) != there.get(doc_id)}
        gone |= unfinished - docstore.docs.keys()
        new = there.keys() - docstore.docs.keys()
        if gone or new:
            _write_json(self._unfinished_file, sorted(gone | new))
        for doc_id in gone:
            docstore.delete_document(doc_id, raise_error=False)
        if gone:  # first: what fails from here on is new at the next run, not lost
            self._persist(docstore)
        for doc_id in gone:
            self._vectors.delete(doc_id)

    def _persist(self, docstore: SimpleDocumentStore) -> None:
        _write_json(self._docstore_file, docstore.to_dict())


def _is_gone(file: Path) -> bool:
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it cannot be told
        pass
    return False


def _file_of(doc_id: str) -> Path:
    return Path(doc_id.rpartition("#")[0])


def _of_files(files: Sequence[Path]) -> MetadataFilters:
    own = MetadataFilter(key="file_path", value=[str(file) for file in files], operator=FilterOperator.IN)
    return MetadataFilters(filters=[own])


def _is_near(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two embeddings of a text are one model's, to within rounding."""
    return len(one) == len(other) and similarity([*one], [*other]) > 0.99


def _write_json(file: Path, value: object) -> None:
    with written_whole(file) as written:
        written.write(json.dumps(value).encode())
