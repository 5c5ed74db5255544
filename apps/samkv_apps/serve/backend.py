"""Compute answers with one engine in this process. ``ray.py`` does so with several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from anyio import to_thread

from samkv_apps.serve.decoding import VllmDecoder, VllmStream
from samkv_apps.serve.errors import ApiError, queue_full
from samkv_apps.serve.schema import ChatRequest, CompletionRequest, Document
from samkv_rag import GenerationResult, Grammar, IngestionReport, Piece, SamKVEngine
from samkv_rag.engine import Prompt
from samkv_rag.exceptions import ChatTemplateError, ConfigurationError
from samkv_rag.frameworks.messages import render
from samkv_rag.frameworks.tools import answer_grammar
from samkv_rag.model.tokenization import RenderedPrompt
from samkv_rag.prefill import PrefillMethod, resolve_method
from samkv_rag.runtime.stream import AsyncAnswerStream
from samkv_rag.sources import source_names

Asked = ChatRequest | CompletionRequest
_SOURCES = "serve"
"""Scope of the server's source ids, which keeps them apart from those of the store's other users."""
_MAX_ELSEWHERE = 256
"""Most answers that vLLM decodes at once; each handover takes memory until its answer ends."""


class Backend(ABC):
    """Computes answers and stores documents. Raises ``ApiError`` or ``SamKVError``."""

    @abstractmethod
    def answer(self, request: Asked, max_tokens: int) -> AsyncGenerator[Piece | GenerationResult, None]:
        """Yield an answer of at most ``max_tokens`` piece by piece, then the result. Closing stops the work."""

    @abstractmethod
    async def ingest(self, documents: Sequence[Document]) -> IngestionReport:
        """Compute and store the KV of documents. A document replaces the earlier one with its id."""

    @abstractmethod
    async def forget(self, document_id: str) -> int:
        """Forget a document; return the number of deleted chunks, 0 if another document has the same text."""

    @abstractmethod
    def num_evicted(self) -> int:
        """Return the number of chunks that this process has evicted from the store to stay within a budget."""

    @abstractmethod
    async def close(self) -> None:
        """Cancel running answers and release all resources."""


class EngineBackend(Backend):
    """One engine in this process. Closing this closes the engine and the decoder.

    Args:
        engine: computes the answers.
        decoder: decodes the answers whose options it supports; None: the engine decodes all.
    """

    def __init__(self, engine: SamKVEngine, decoder: VllmDecoder | None = None) -> None:
        self.engine = engine
        self._decoder = decoder
        self._num_elsewhere = 0

    async def answer(self, request: Asked, max_tokens: int) -> AsyncGenerator[Piece | GenerationResult, None]:
        method = _method(request.samkv, self.engine.method)
        prompt, grammar = await to_thread.run_sync(_prompt, self.engine, request)
        sampling = request.sampling | {"max_new_tokens": min(request.sampling["max_new_tokens"], max_tokens)}
        texts = [document.text for document in request.documents]
        async with self._stream(prompt, {"method": method, "grammar": grammar, **sampling}) as stream:
            announcement = await to_thread.run_sync(self.engine.announce, texts)
            try:
                first = await anext(stream, None)
            finally:  # the prompt has been recognised, or never will be
                announcement.cancel()
            if first is not None:
                yield first
            async for piece in stream:
                yield piece
        yield stream.result

    async def ingest(self, documents: Sequence[Document]) -> IngestionReport:
        sources = [source_names(_SOURCES, [one.id])[0] if one.id else None for one in documents]
        texts = [one.text for one in documents]
        return await to_thread.run_sync(lambda: self.engine.add_chunks(texts, sources=sources, show_progress=False))

    async def forget(self, document_id: str) -> int:
        return await to_thread.run_sync(self.engine.remove_sources, source_names(_SOURCES, [document_id]))

    def num_evicted(self) -> int:
        return self.engine.store.num_evicted

    async def close(self) -> None:
        if self._decoder is not None:
            await self._decoder.aclose()
        await to_thread.run_sync(self.engine.close)

    @asynccontextmanager
    async def _stream(
        self, prompt: Prompt, options: dict[str, Any]
    ) -> AsyncGenerator[AsyncAnswerStream | VllmStream, None]:
        if self._decoder is None or not self._decoder.carries_out(options):
            async with aclosing(self.engine.astream(prompt, **options)) as stream:
                yield stream
            return
        if self._num_elsewhere >= _MAX_ELSEWHERE:
            raise queue_full(f"{_MAX_ELSEWHERE} answers are being written, which is the limit; try again later")
        self._num_elsewhere += 1
        try:
            async with aclosing(VllmStream(self._decoder, self.engine, prompt, options)) as handed_over:
                yield handed_over
        finally:
            self._num_elsewhere -= 1


def _prompt(engine: SamKVEngine, request: Asked) -> tuple[Prompt, Grammar | None]:
    """Return the prompt with the request's documents, and the grammar of the answer."""
    schema = request.json_schema
    if isinstance(request, ChatRequest):
        tools, parallel = request.function_schemas, request.parallel_tool_calls is not False
        grammar = answer_grammar(engine.tokenizer.template, tools, request.must_call, schema, parallel)
        return _rendered(engine, request, tools), grammar
    shown = "".join(f"{_shown(one)}\n\n" for one in _missing_in([request.text], request.documents))
    prompt = engine.tokenizer.as_text(shown) + request.text
    return replace(prompt, user_text=prompt.text), answer_grammar("", schema=schema)


def _method(asked: str | dict[str, Any] | None, own: PrefillMethod) -> PrefillMethod:
    """Return the requested method. Options without a name, or with its name, modify the server's method.

    Raises:
        ConfigurationError: a method or option does not exist, or a value is out of range.
    """
    if isinstance(asked, dict):
        name = asked.get("name", own.name)
        if not isinstance(name, str):
            raise ConfigurationError(f"samkv.name is {name!r}; it must be the name of a method")
        return resolve_method(own.to_dict() | asked if name == own.name else asked)
    return own if asked is None else resolve_method(asked)


def _rendered(engine: SamKVEngine, request: ChatRequest, tools: Sequence[dict[str, Any]]) -> RenderedPrompt:
    """Render the messages as one prompt.

    Documents that no message contains go where the chat template puts documents, otherwise before the text of the last
    user message.
    """
    messages = [message.for_template for message in request.messages]
    if documents := _missing_in([message["content"] for message in messages], request.documents):
        if engine.takes_documents:
            given = [{"title": one.title.strip(), "text": one.text.strip()} for one in documents]
            with suppress(ChatTemplateError):  # the template escapes documents, so chunks would not be recognised
                return render(engine, messages, tools, given)
        asked = next((message for message in reversed(messages) if message["role"] == "user"), None)
        if asked is None:
            raise ApiError(400, "there are documents but no user message; send the question as one", param="messages")
        asked["content"] = "\n\n".join([*map(_shown, documents), asked["content"]])
    return render(engine, messages, tools)


def _missing_in(texts: Sequence[str], documents: Sequence[Document]) -> list[Document]:
    return [document for document in documents if not any(document.text.strip() in text for text in texts)]


def _shown(document: Document) -> str:
    """Return a document as it appears in a prompt. The title is ordinary text; the chunk is the text alone."""
    return f"{document.title.strip()}\n{document.text.strip()}" if document.title.strip() else document.text.strip()
