"""A postprocessor that changes no node: it announces the retrieved chunks to the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.llms.samkv._nodes import chunk_texts

from samkv_rag.checks import refuse_unknown
from samkv_rag.frameworks.handle import EngineHandle, resolve_handle

if TYPE_CHECKING:
    from llama_index.llms.samkv.base import SamKVLLM

    from samkv_rag import SamKVEngine


class SamKVPostprocessor(BaseNodePostprocessor):
    """Announce the retrieved chunks to the engine, so that their KV is on its way before the prompt is.

    Put it last in ``node_postprocessors``, after filters and rerankers. Nodes come back as they were:
    nothing is written into their text. A chunk that was never ingested is recognised in the prompt
    thanks to the announcement, computed on the spot and stored.

    Args:
        llm: the SamKVLLM that will answer.
        engine: instead of ``llm``, its engine.
        callback_manager: as for every LlamaIndex postprocessor.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, or an unknown argument.
    """

    _handle: EngineHandle = PrivateAttr()

    def __init__(self, llm: SamKVLLM | None = None, *, engine: SamKVEngine | None = None, **options: Any) -> None:
        refuse_unknown(options, ("callback_manager",))
        super().__init__(**options)
        self._handle = resolve_handle(llm, engine, "SamKVLLM")

    @classmethod
    def class_name(cls) -> str:
        """Return the name used in serialization."""
        return "SamKVPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        self._handle.get().announce(chunk_texts(nodes))
        return nodes
