"""A postprocessor that announces the retrieved chunks to the engine and can rerank them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.llms.samkv._citations import uncited
from llama_index.llms.samkv._nodes import chunks_with_ids, node_text

from samkv_rag.checks import refuse_unknown
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.handle import EngineHandle, resolve_handle
from samkv_rag.frameworks.options import plain_refusals
from samkv_rag.frameworks.ranking import best_of

if TYPE_CHECKING:
    from llama_index.llms.samkv.base import SamKVLLM

    from samkv_rag import SamKVEngine


class SamKVPostprocessor(BaseNodePostprocessor):
    """Announce the retrieved chunks to the engine, which reads their KV while the prompt is being built.

    Put it last in ``node_postprocessors``, after filters and other rerankers. It does not change nodes' texts. Chunks
    that were never ingested are recognised in the prompt too, computed on the spot and stored.

    If the LLM has ``explain``, the query's ``source_nodes`` say in ``metadata["samkv_spans"]`` which parts of their
    text the answer was read from, strongest first: ``start_char``, ``stop_char``, ``score``. In a stream they say it
    when the stream ends.

    Args:
        llm: the SamKVLLM that will answer.
        engine: instead of ``llm``, its engine.
        rerank: sort the nodes, best first. The ranking combines the retriever's order with how well the nodes match
            the query, see :meth:`samkv_rag.SamKVEngine.rank`. Scores are the sum of 1 ÷ (60 + place) in both.
        top_n: how many nodes to keep; None keeps all.
        callback_manager: as for every LlamaIndex postprocessor.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, an unknown argument, or ``top_n`` without
            ``rerank`` or below 1.
    """

    rerank: bool = Field(default=False, description="Sort nodes by how well they match the query.")
    top_n: int | None = Field(default=None, ge=1, description="How many nodes to keep; None keeps all.")
    _handle: EngineHandle = PrivateAttr()

    def __init__(self, llm: SamKVLLM | None = None, *, engine: SamKVEngine | None = None, **options: Any) -> None:
        refuse_unknown(options, type(self).model_fields)
        with plain_refusals():
            super().__init__(**options)
        if self.top_n is not None and not self.rerank:
            raise ConfigurationError(f"top_n is {self.top_n} and rerank is False; pass rerank=True too")
        self._handle = resolve_handle(llm, engine, "SamKVLLM")

    @classmethod
    def class_name(cls) -> str:
        return "SamKVPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        # Copies, because citing replaces their nodes and the retriever may return the same objects again.
        found = self._ranked(nodes, query_bundle) if self.rerank else [item.model_copy() for item in nodes]
        self._handle.get().announce(text for _, text in chunks_with_ids(found))
        uncited.set([*found])
        return found

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        found = await super()._apostprocess_nodes(nodes, query_bundle)  # in a thread, in a copy of this context
        uncited.set([*found])
        return found

    def _ranked(self, nodes: list[NodeWithScore], query: QueryBundle | None) -> list[NodeWithScore]:
        if query is None:
            raise ConfigurationError("rerank is True and there is no query to rank by; pass query_bundle or query_str")
        matches = self._handle.get().rank(query.query_str, map(node_text, nodes))
        return [item.model_copy(update={"score": score}) for item, score in best_of(nodes, matches, self.top_n)]
