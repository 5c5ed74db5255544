"""A reranker that sorts documents by how well the engine finds that they match the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, PrivateAttr

from samkv_rag.checks import refuse_unknown
from samkv_rag.frameworks.handle import EngineHandle, resolve_handle
from samkv_rag.frameworks.options import plain_refusals
from samkv_rag.frameworks.ranking import best_of

if TYPE_CHECKING:
    from langchain_samkv.chat_models import ChatSamKV
    from samkv_rag import SamKVEngine


class SamKVReranker(BaseDocumentCompressor):
    """Keep the best of a retriever's documents, best first, and announce them to the engine.

    The ranking combines the retriever's order with how well the documents match the question. It needs no other model:
    the engine compares the question with the documents' cached KV, see :meth:`samkv_rag.SamKVEngine.rank`. Their
    ``metadata["relevance_score"]`` is the sum of 1 ÷ (60 + place) in both orders. In a chain, use the reranker as the
    ``base_compressor`` of LangChain's ``ContextualCompressionRetriever``.

    Args:
        llm: the ChatSamKV that will answer.
        engine: instead of ``llm``, its engine.
        top_n: how many documents to keep; None keeps all.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``, an unknown argument, or ``top_n`` below 1.
    """

    top_n: int | None = Field(default=3, ge=1)
    _handle: EngineHandle = PrivateAttr()

    def __init__(self, llm: ChatSamKV | None = None, *, engine: SamKVEngine | None = None, **options: Any) -> None:
        refuse_unknown(options, type(self).model_fields)
        with plain_refusals():
            super().__init__(**options)
        self._handle = resolve_handle(llm, engine, "ChatSamKV")

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best of ``documents``, best first."""
        engine = self._handle.get()
        matches = engine.rank(query, (document.page_content for document in documents))
        best = best_of(documents, matches, self.top_n)
        engine.announce(document.page_content for document, _ in best)
        return [
            document.model_copy(update={"metadata": document.metadata | {"relevance_score": score}})
            for document, score in best
        ]
