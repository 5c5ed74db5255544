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


class SamKVIngestion(TransformComponent):
    """Compute and store the KV of every node's text; the nodes do not change.

    Put it after the splitter, in an ``IngestionPipeline`` or in ``VectorStoreIndex(transformations=[...])``.

    A pipeline with a cache skips this step for nodes it has seen, even if the KV store is new or was emptied. Answers
    stay right: with SamKVPostprocessor the engine recognises such chunks and computes them on the spot. To compute
    them earlier, call :meth:`ingest` with the pipeline's nodes.

    Deleting a document from an index leaves its KV behind, because LlamaIndex does not tell its steps. Wrap the vector
    store in a :class:`SamKVVectorStore`, which removes KV with its document; or call :meth:`remove_nodes` with the ids
    of deleted nodes, or :meth:`prune` with the nodes that stay.

    The step needs the model in its own process, so it refuses to run in a pipeline's worker processes: run such a
    pipeline without it and call :meth:`ingest` with the nodes.

    Args:
        llm: the SamKVLLM that will answer.
        engine: instead of ``llm``, its engine.
        show_progress: show a progress bar; None leaves it to the engine. LlamaIndex does not pass a pipeline's own
            ``show_progress`` to its steps.
        id_scope: the name of the index that the node ids belong to. Only :meth:`prune` needs it, to leave other
            indexes' KV alone.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, or an unknown argument.
    """

    # A pipeline's cache key is made of these and the nodes, so none of them may differ between two runs.
    model: str = Field(description="Name of the model whose KV is stored.")
    store: str | None = Field(default=None, description="Where KV is stored, if known.")
    # Raise the version when cached pipeline results of earlier versions must run again.
    version: int = Field(default=1, description="Version of this step.")
    namespace: str = Field(default="", description="Tenant whose chunks these are.")
    id_scope: str = Field(default="", description="Name of the index that the node ids belong to.")
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
        if handle.given is not None:
            identity = {"model": handle.given.model_name, "namespace": handle.given.namespace}
        else:  # known without loading the model
            assert llm is not None
            identity = {"model": llm.model, "namespace": llm.namespace, "store": without_secrets(llm.store)}
        super().__init__(**identity, show_progress=show_progress, id_scope=id_scope)
        self._handle = handle

    @classmethod
    def class_name(cls) -> str:
        return "SamKVIngestion"

    @property
    def engine(self) -> SamKVEngine:
        """The engine, loaded on first use.

        Raises:
            ConfigurationError: this is a copy in a worker process, which has no engine.
        """
        handle = getattr(self, "_handle", None)  # not pickled
        if handle is None:
            raise ConfigurationError(
                "SamKVIngestion cannot run in a worker process; leave it out of a pipeline run with "
                "num_workers and call ingest(nodes) with what the pipeline returns"
            )
        return cast(EngineHandle, handle).get()

    def __call__(
        self, nodes: Sequence[BaseNode], show_progress: bool | None = None, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Store the KV of ``nodes`` and return them unchanged; other arguments are ignored."""
        self.ingest(nodes, show_progress=show_progress)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """As :meth:`__call__`, without blocking the event loop."""
        return await run_in_thread_shielded(self.__call__, nodes, **kwargs)

    def ingest(
        self, items: Iterable[BaseNode | NodeWithScore | str], *, show_progress: bool | None = None
    ) -> IngestionReport:
        """Store the KV of nodes or texts that is not stored yet, under the nodes' ids."""
        show = self.show_progress if show_progress is None else show_progress
        chunks = chunks_with_ids(items)
        sources = [None if node_id is None else source_names(self.id_scope, [node_id])[0] for node_id, _ in chunks]
        return self.engine.add_chunks([text for _, text in chunks], sources=sources, show_progress=show)

    def remove_nodes(self, node_ids: Iterable[str]) -> int:
        """Remove the KV of deleted nodes, except where another node has the same text; return how many chunks.

        For example, call ``ingestion.remove_nodes(index.docstore.get_ref_doc_info(doc_id).node_ids)`` before you
        delete a document.
        """
        return self.engine.remove_sources(source_names(self.id_scope, node_ids))

    def prune(self, keep: Iterable[BaseNode | NodeWithScore | str], *, unreferenced: bool = False) -> int:
        """Remove the KV of this ``id_scope``'s nodes that are not in ``keep``; return how many chunks.

        For example, call ``ingestion.prune(index.docstore.docs.values())`` after deletions. If the vector store holds
        the nodes itself, as Chroma does, that docstore is empty: give ``vector_store.get_nodes(None)``.

        The texts of ``keep`` stay, whatever their nodes' ids, and so do chunks that other scopes refer to, and chunks
        without a node (of plain texts, or computed for a question).

        Raises:
            ConfigurationError: this step has no ``id_scope``, so another index's KV could be removed.

        Args:
            keep: the nodes or texts whose KV stays; if empty, all KV of this scope is removed.
            unreferenced: also remove this model's chunks that have no node in any scope and are not in ``keep``.
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
