"""From a request to the engine's answer, piece by piece."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import asdict
from typing import Any

from anyio import to_thread

from samkv_apps.serve.decoding import VllmDecoder, VllmStream
from samkv_apps.serve.errors import ApiError, queue_full
from samkv_apps.serve.metrics import Metrics
from samkv_apps.serve.schema import ChatRequest, CompletionRequest, Document
from samkv_apps.serve.tracing import span
from samkv_rag import GenerationResult, Grammar, Piece, SamKVEngine
from samkv_rag.engine import Prompt
from samkv_rag.exceptions import ChatTemplateError, ConfigurationError
from samkv_rag.frameworks.messages import render
from samkv_rag.frameworks.tools import answer_grammar
from samkv_rag.model.tokenization import RenderedPrompt
from samkv_rag.prefill import PrefillMethod, resolve_method
from samkv_rag.runtime.stream import AsyncAnswerStream
from samkv_rag.sources import source_names

_SOURCES = "serve"
"""Sources of documents that came over the network are kept apart from those of other users of the store."""
_MAX_INGESTIONS = 4
"""Requests that may ingest at once: each holds a thread, and its texts."""

_MAX_ELSEWHERE = 256
"""Answers being written beyond which none is handed over: each handover takes memory to the end of its answer."""


class Answers:
    """Answers requests from one engine.

    Args:
        engine: answers.
        model: what clients call it.
        max_queue: requests that may wait; as the engine's ``max_waiting``.
        decoder: decodes the answers whose options it carries out; None: the engine decodes all.
    """

    def __init__(self, engine: SamKVEngine, model: str, max_queue: int, decoder: VllmDecoder | None = None) -> None:
        self.model = model
        self._engine = engine
        self._decoder = decoder
        self._max_queue = max_queue
        self._num = {"waiting": 0, "running": 0, "ingesting": 0}
        self.metrics = Metrics(lambda: self._num["waiting"], lambda: self._num["running"])

    @property
    def has_room(self) -> bool:
        """Whether another request would be let in."""
        return self._num["waiting"] < self._max_queue

    def require_model(self, name: str) -> None:
        """Refuse a model that is not the one served."""
        if name != self.model:
            message = f"model is {reprlib.repr(name)}; this server has {self.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def answer(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[Piece | GenerationResult, None]:
        """Yield the answer piece by piece, then the result. Closing, or cancelling who waits, ends it.

        Raises:
            ApiError, SamKVError: it cannot be answered; nothing was yielded, unless the engine failed later.
        """
        self.require_model(request.model)
        operation = "chat" if isinstance(request, ChatRequest) else "text_completion"
        with span(operation, self.model) as noted:
            with self._counted("waiting"):
                method = _method(request.samkv, self._engine.method)
                prompt, grammar = await to_thread.run_sync(self._prompt, request)
                stream = self._stream(prompt, {"method": method, "grammar": grammar, **request.sampling})
                texts = [document.text for document in request.documents]
                announcement = await to_thread.run_sync(self._engine.announce, texts)
                try:
                    first = await anext(stream, None)
                finally:  # the prompt has been read, or never will be
                    announcement.cancel()
            with self._counted("running"):
                async with aclosing(stream):
                    if first is not None:
                        yield first
                    async for piece in stream:
                        yield piece
            self.metrics.count_answer(stream.result)
            noted.finish(stream.result)
        yield stream.result  # outside of the span: who has it may read no further

    async def ingest(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Compute and store the KV of documents; one with an id takes the place of what had it before."""
        if self._num["ingesting"] >= _MAX_INGESTIONS:
            raise queue_full(f"{_MAX_INGESTIONS} requests are ingesting, which is the limit; try again later")
        sources = [source_names(_SOURCES, [one.id])[0] if one.id else None for one in documents]

        def add() -> dict[str, Any]:
            report = self._engine.add_chunks((one.text for one in documents), sources=sources, show_progress=False)
            self.metrics.count_ingestion(report)
            return asdict(report)

        with self._counted("ingesting"):
            return await to_thread.run_sync(add)

    async def forget(self, document_id: str) -> int:
        """Forget a document, and return how many chunks were deleted: none where another has the same text."""
        return await to_thread.run_sync(self._engine.remove_sources, source_names(_SOURCES, [document_id]))

    def _stream(self, prompt: Prompt, options: dict[str, Any]) -> AsyncAnswerStream | VllmStream:
        if self._decoder is not None and self._decoder.carries_out(options):
            if self._num["running"] >= _MAX_ELSEWHERE:
                raise queue_full(f"{_MAX_ELSEWHERE} answers are being written, which is the limit; try again later")
            return VllmStream(self._decoder, self._engine, prompt, options)
        return self._engine.astream(prompt, **options)

    def _prompt(self, request: ChatRequest | CompletionRequest) -> tuple[Prompt, Grammar | None]:
        """The prompt with the request's documents in it, and the grammar of the answer."""
        documents, schema = request.documents, request.json_schema
        if isinstance(request, ChatRequest):
            tools, parallel = request.function_schemas, request.parallel_tool_calls is not False
            rendered = _rendered(self._engine, request, tools)
            return rendered, answer_grammar(rendered.text, tools, request.must_call, schema, parallel)
        shown = [] if _any_in(documents, [request.text]) else map(_shown, documents)
        prompt = "\n\n".join([*shown, request.text])
        return prompt, answer_grammar(prompt, schema=schema)

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        self._num[what] += 1
        try:
            yield
        finally:
            self._num[what] -= 1


def _method(asked: str | dict[str, Any] | None, own: PrefillMethod) -> PrefillMethod:
    """The method asked for. Options without a name, or with that of the server's own method, change the server's.

    Raises:
        ConfigurationError: no such method or option, or a value out of range.
    """
    if isinstance(asked, dict):
        name = asked.get("name", own.name)
        if not isinstance(name, str):
            raise ConfigurationError(f"samkv.name is {name!r}; it must be the name of a method")
        return resolve_method(own.to_dict() | asked if name == own.name else asked)
    return own if asked is None else resolve_method(asked)


def _rendered(engine: SamKVEngine, request: ChatRequest, tools: Sequence[dict[str, Any]]) -> RenderedPrompt:
    """The messages as one prompt. Documents that stand in none of them go where the chat template has its place for
    documents, else in front of the last message of the user's.
    """
    messages, documents = [message.for_template for message in request.messages], request.documents
    if documents and not _any_in(documents, [message["content"] for message in messages]):
        if engine.takes_documents:
            given = [{"title": one.title.strip(), "text": one.text.strip()} for one in documents]
            with suppress(ChatTemplateError):  # one that escapes them, as JSON: their chunks would not be recognised
                return render(engine, messages, tools, given)
        asked = next((message for message in reversed(messages) if message["role"] == "user"), None)
        if asked is None:
            raise ApiError(400, "there are documents and no user message; send the question as one", param="messages")
        asked["content"] = "\n\n".join([*map(_shown, documents), asked["content"]])
    return render(engine, messages, tools)


def _any_in(documents: Sequence[Document], texts: Sequence[str]) -> bool:
    return any(document.text.strip() in text for document in documents for text in texts)


def _shown(document: Document) -> str:
    """How a document stands in a prompt: its title is ordinary text, so that the chunk is the text alone."""
    return f"{document.title.strip()}\n{document.text.strip()}" if document.title.strip() else document.text.strip()
