"""An ingestion step that computes the KV of every chunk once and stores it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, NodeWithScore, TransformComponent
from llama_index.llms.samkv._nodes import chunk_texts, chunks_with_ids

from samkv_rag.config import refuse_unknown
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.serving.handle import EngineHandle, handle_of
from samkv_rag.serving.sources import source_names

if TYPE_CHECKING:
    from llama_index.llms.samkv.base import SamKVLLM

    from samkv_rag import IngestionReport, SamKVEngine

_VERSION = 1  # raise it when cached pipeline results of earlier versions must run again


class SamKVIngestion(TransformComponent):
    """Compute and store the KV of every node's text; nodes come back as they were.

    Put it behind the splitter, in an ``IngestionPipeline`` or in ``VectorStoreIndex(transformations=[...])``.

    A pipeline with a cache skips this step for nodes it has seen, also when the KV store is new or was
    emptied. Answers stay right: SamKVPostprocessor makes the engine recognise such chunks and compute
    them on the spot. To pay for that beforehand, call :meth:`ensure` with the pipeline's nodes.

    Deleting a document from an index or a docstore leaves its KV behind: :meth:`remove_nodes`, with the
    ids of the nodes that go, or :meth:`prune`, with the nodes that stay, removes it.

    The step computes on one model in one process, so it refuses to run in a pipeline's worker
    processes: run such a pipeline without it and call :meth:`ensure` with the nodes.

    Args:
        llm: the SamKVLLM that will answer.
        engine: instead of ``llm``, its engine.
        show_progress: show a progress bar; None leaves it to the engine. LlamaIndex does not hand a
            pipeline's own ``show_progress`` to its steps.
        namespace: keeps the node ids of several indexes apart where they share a store; one for each.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, or an unknown argument.
    """

    # What a pipeline's cache key is made of, besides the nodes: nothing that differs between two runs.
    model: str = Field(description="Name of the model whose KV is stored.")
    store: str | None = Field(default=None, description="Where, when known.")
    version: int = Field(default=_VERSION, description="Version of this step.")
    namespace: str = Field(default="llama_index", description="Whose node ids these are.")
    show_progress: bool | None = Field(default=None, exclude=True, description="Show a progress bar.")

    _handle: EngineHandle = PrivateAttr()

    def __init__(
        self,
        llm: SamKVLLM | None = None,
        *,
        engine: SamKVEngine | None = None,
        show_progress: bool | None = None,
        namespace: str = "llama_index",
        **options: Any,
    ) -> None:
        refuse_unknown(options, ("llm", "engine", "show_progress", "namespace"))
        handle = handle_of(llm, engine, "SamKVLLM")
        # The LLM's name and store are known without loading its model.
        model = llm.model if llm is not None else handle.get().model_name
        store = llm.store if llm is not None else None
        super().__init__(model=model, store=store, show_progress=show_progress, namespace=namespace)
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
                "num_workers and call ensure(nodes) with what the pipeline returns"
            )
        return cast(EngineHandle, handle).get()

    def __call__(
        self, nodes: Sequence[BaseNode], show_progress: bool | None = None, **kwargs: Any
    ) -> Sequence[BaseNode]:
        """Store the KV of ``nodes`` and return them unchanged.

        Other arguments, which LlamaIndex passes to every step alike, have no meaning here.
        """
        self.ensure(nodes, show_progress=show_progress)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do the same without blocking the event loop."""
        return await asyncio.to_thread(self.__call__, nodes, **kwargs)

    def ensure(
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

    def prune(self, keep: Iterable[BaseNode | NodeWithScore | str]) -> int:
        """Remove the KV of every chunk of this model but those of ``keep``; return how many.

        For example ``ingestion.prune(index.docstore.docs.values())`` after deletions.
        """
        return self.engine.prune(chunk_texts(keep))

    def _source(self, node_id: str) -> str:
        return source_names(self.namespace, [node_id])[0]
