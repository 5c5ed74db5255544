"""A retriever that announces what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import PrivateAttr

from samkv_rag.frameworks.handle import EngineHandle, resolve_handle
from samkv_rag.frameworks.threads import run_in_thread_shielded

if TYPE_CHECKING:
    from langchain_samkv.chat_models import ChatSamKV
    from samkv_rag import SamKVEngine


class SamKVRetriever(BaseRetriever):
    """Wrap any retriever and announce what it finds to the engine.

    The engine reads the chunks' KV while the prompt is still being built. It also recognises chunks that were never
    ingested, computes their KV on the spot and stores it.

    Args:
        retriever: the retriever to wrap.
        llm: the ChatSamKV that will answer.
        engine: instead of ``llm``, its engine.

    Raises:
        ConfigurationError: not exactly one of ``llm`` and ``engine``.
    """

    retriever: BaseRetriever
    _handle: EngineHandle = PrivateAttr()

    def __init__(
        self,
        retriever: BaseRetriever,
        llm: ChatSamKV | None = None,
        *,
        engine: SamKVEngine | None = None,
        **options: Any,
    ) -> None:
        super().__init__(retriever=retriever, **options)
        self._handle = resolve_handle(llm, engine, "ChatSamKV")

    # LangChain passes a call's own arguments, such as a filter, only to a method that takes them.
    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        return self._announced(self.retriever.invoke(query, {"callbacks": run_manager.get_child()}, **kwargs))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        found = await self.retriever.ainvoke(query, {"callbacks": run_manager.get_child()}, **kwargs)
        return await run_in_thread_shielded(self._announced, found)

    def _announced(self, found: list[Document]) -> list[Document]:
        self._handle.get().announce([document.page_content for document in found])
        return found
