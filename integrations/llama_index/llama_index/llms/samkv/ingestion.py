"""An ingestion step that computes the KV of every chunk once and stores it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, NodeWithScore, TransformComponent
from llama_index.llms.samkv._nodes import chunks_with_ids

from samkv_rag.checks import refuse_unknown
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.handle import EngineHandle, resolve_handle
from samkv_rag.frameworks.threads import run_in_thread_shielded
from samkv_rag.sources import ids_of, source_names
from samkv_rag.store.unreachable import without_secrets

if TYPE_CHECKING:
    from llama_index.llms.samkv.base import SamKVLLM

    from samkv_rag import IngestionReport, SamKVEngine

_VERSION = 1  # raise it when cached pipeline results of earlier versions must run again


class SamKVIngestion(TransformComponent):
    """Compute and store the KV of every node's text; nodes come back as they were.

    Put it behind the splitter, in an ``IngestionPipeline`` or in ``VectorStoreIndex(transformations=[...])``.

    A pipeline with a cache skips this step for nodes it has seen, also when the KV store is new or was
    emptied. Answers stay right: SamKVPostprocessor makes the engine recognise such chunks and compute
    them on the spot. To pay for that beforehand, call :meth:`ingest` with the pipeline's nodes.

    Deleting a document from an index leaves its KV behind, since LlamaIndex tells no step of it. Put a
    :class:`SamKVVectorStore` around the vector store, and it goes with the document; or call
    :meth:`remove_nodes` with the ids of the nodes that go, or :meth:`prune` with the nodes that stay.

    The step computes on one model in one process, so it refuses to run in a pipeline's worker
    processes: run such a pipeline without it and call :meth:`ingest` with the nodes.

    Args:
        llm: the SamKVLLM that will answer.
        engine: instead of ``llm``, its engine.
        show_progress: show a progress bar; None leaves it to the engine. LlamaIndex does not hand a
            pipeline's own ``show_progress`` to its steps.
        id_scope: the index whose node ids these are. LlamaIndex's own ids are unique, so it is needed only
            for :meth:`prune`, which must know what is another index's.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, or an unknown argument.
    """

    # What a pipeline's cache key is made of, besides the nodes: nothing that differs between two runs.
    model: str = Field(description="Name of the model whose KV is stored.")
    store: str | None = Field(default=None, description="Where, when known.")
    version: int = Field(default=_VERSION, description="Version of this step.")
    namespace: str = Field(default="", description="The engine's: of one tenant's chunks another gets none.")
    id_scope: str = Field(default="", description="Whose node ids these are.")
    show_progress: bool | None = Field(default=None, exclude=True, description="Show a progress bar.")

    _handle: EngineHandle = PrivateAttr()

    def __init__(
        self,
        llm: SamKVLLM | None = None,
        *,
        engine: SamKVEngine | None = None,
        show_progress: bool | None = None,
        id_scope: str = "",
        **options: Any,
    ) -> None:
        refuse_unknown(options, ("llm", "engine", "show_progress", "id_scope"))
        handle = resolve_handle(llm, engine, "SamKVLLM")
        super().__init__(**_identity(llm, handle), show_progress=show_progress, id_scope=id_scope)
        self._handle = handle

    @classmethod
    def class_name(cls) -> str:
        """Return the name used in serialization."""
        return "SamKVIngestion"

    @property
    def engine(self) -> SamKVEngine:
        """The engine, loaded on first use.

        Raises:
            ConfigurationError: this is a copy in a worker process, which has no engine.
        """
        handle = getattr(self, "_handle", None)  # lost on the way to another process
        if handle is None:
            raise ConfigurationError(
                "SamKVIngestion cannot run in a worker process; leave it out of a pipeline run with "
                "num_workers and call ingest(nodes) with what the pipeline returns"
            )
        return cast(EngineHandle, handle).get()

    def __call__(
        self, nodes: Sequence[BaseNode], show_progress: bool | None = None, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Store the KV of ``nodes`` and return them unchanged.

        Other arguments, which LlamaIndex passes to every step alike, have no meaning here.
        """
        self.ingest(nodes, show_progress=show_progress)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do the same without blocking the event loop."""
        return await run_in_thread_shielded(self.__call__, nodes, **kwargs)

    def ingest(
        self, items: Iterable[BaseNode | NodeWithScore | str], *, show_progress: bool | None = None
    ) -> IngestionReport:
        """Store the KV of those nodes or texts that are not in the store yet, under the nodes' ids."""
        show = self.show_progress if show_progress is None else show_progress
        chunks = chunks_with_ids(items)
        sources = [None if node_id is None else self._source(node_id) for node_id, _ in chunks]
        return self.engine.add_chunks([text for _, text in chunks], sources=sources, show_progress=show)

    def remove_nodes(self, node_ids: Iterable[str]) -> int:
        """Remove the KV of deleted nodes, save where another node has the same text; return how many chunks.

        For example ``ingestion.remove_nodes(index.docstore.get_ref_doc_info(doc_id).node_ids)`` before a
        document is deleted.
        """
        return self.engine.remove_sources(self._source(node_id) for node_id in node_ids)

    def prune(self, keep: Iterable[BaseNode | NodeWithScore | str], *, unreferenced: bool = False) -> int:
        """Remove the KV of this ``id_scope``'s nodes that are not in ``keep``; return how many chunks.

        For example ``ingestion.prune(index.docstore.docs.values())`` after deletions. Where a vector store
        holds the nodes itself (Chroma, say), that docstore is empty: give
        ``vector_store.get_nodes(None)``.

        Texts of ``keep`` stay, whatever their nodes' ids, and so does what other scopes refer to. KV that no
        node ever stood for (of plain texts, or computed for a question) may be anybody's: it stays too.

        Raises:
            ConfigurationError: this step has no ``id_scope``, so that another index's KV could go.

        Args:
            keep: the nodes, or texts, whose KV stays; of nothing, everything of this scope goes.
            unreferenced: also remove KV of this model that no node of any scope stands for and that is not
                in ``keep``.
        """
        if not self.id_scope:
            raise ConfigurationError(
                "prune needs an id_scope, or it would remove other indexes' KV: SamKVIngestion(llm, id_scope='manuals')"
            )
        chunks = chunks_with_ids(keep)
        texts, kept = [text for _, text in chunks], {node_id for node_id, _ in chunks}
        gone = [node_id for node_id in ids_of(self.id_scope, self.engine.sources()) if node_id not in kept]
        num_removed = self.engine.remove_sources(source_names(self.id_scope, gone), keep_texts=texts)
        return num_removed + (self.engine.prune(texts, unreferenced_only=True) if unreferenced else 0)

    def _source(self, node_id: str) -> str:
        return source_names(self.id_scope, [node_id])[0]


def _identity(llm: SamKVLLM | None, handle: EngineHandle) -> dict[str, Any]:
    """Whose KV it is. An LLM's is known without loading its model."""
    if llm is None:
        return {"model": handle.get().model_name, "namespace": handle.get().namespace}
    return {"model": llm.model, "namespace": llm.namespace, "store": without_secrets(llm.store)}
