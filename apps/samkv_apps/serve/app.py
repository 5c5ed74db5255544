"""The application: routes, streams and error handlers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import Send

from samkv_apps.serve.answers import Answers
from samkv_apps.serve.backend import Asked, Backend
from samkv_apps.serve.errors import ApiError, as_api_error
from samkv_apps.serve.forms import DONE, Explained, Form, event, explained
from samkv_apps.serve.guard import GONE, Guard, Observed
from samkv_apps.serve.schema import ChatRequest, CompletionRequest, IngestRequest
from samkv_rag import GenerationResult, Piece, SamKVError, __version__

MAX_BODY_BYTES = 4 << 20
_PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
T = TypeVar("T")


class ErrorDetail(BaseModel):
    """The problem, in OpenAI's form."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


class ClientGoneError(Exception):
    """The client has disconnected."""


def create_app(
    backend: Backend,
    model: str,
    *,
    api_key: str | None = None,
    max_queue: int = 256,
    max_tokens: int = 2048,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """Return the application over ``backend``, which it closes when the server shuts down.

    Args:
        backend: computes the answers.
        model: the model's name for clients.
        api_key: the key that clients must send; None: no key is needed.
        max_queue: the engine's ``max_waiting``.
        max_tokens: upper limit of an answer's tokens; longer answers are cut off.
        max_body_bytes: larger bodies are refused.
    """
    answers = Answers(backend, model, max_queue, max_tokens)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await backend.close()

    app = FastAPI(
        title="samkv",
        summary="OpenAI's API over samkv_rag",
        version=__version__,
        docs_url=None,  # its page loads scripts from another host
        redoc_url=None,
        lifespan=lifespan,
        middleware=[
            Middleware(Observed, count=answers.metrics.count_request),
            Middleware(Guard, api_key=api_key, max_body_bytes=max_body_bytes),
        ],
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    _add_error_handlers(app)
    _add_openai_routes(app, answers)
    _add_own_routes(app, answers, backend)
    return app


def _add_openai_routes(app: FastAPI, answers: Answers) -> None:
    described = {"id": answers.model, "object": "model", "created": int(time.time()), "owned_by": "samkv"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        return await _respond(answers, request, body)

    @app.post("/v1/completions")
    async def complete(request: Request, body: CompletionRequest) -> Response:
        return await _respond(answers, request, body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        answers.require_model(name)
        return described


def _add_own_routes(app: FastAPI, answers: Answers, backend: Backend) -> None:
    headers = _page_headers(_PAGE)

    @app.post("/v1/samkv/documents")
    async def ingest(body: IngestRequest) -> dict[str, Any]:
        return await answers.ingest(body.documents)

    @app.delete("/v1/samkv/documents/{document_id:path}")
    async def forget(document_id: str) -> dict[str, Any]:
        return {"id": document_id, "deleted_chunks": await backend.forget(document_id)}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        if not answers.has_room:
            raise ApiError(503, "the queue is full; send requests to another server", kind="server_error")
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return answers.metrics.response()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(_PAGE, headers=headers)


async def _respond(answers: Answers, request: Request, body: Asked) -> Response:
    """Answer at once or as a stream. The work stops when the client disconnects."""
    form, pieces = Form(answers.model, body), answers.answer(body)
    # Wait for the first piece before sending anything, so that an error sets the status.
    first = await _while_connected(request, anext(pieces))
    if body.stream:
        return EventStream(_events(first, pieces, form, request, body))
    result = first if isinstance(first, GenerationResult) else await _while_connected(request, _last(pieces))
    whole = form.whole(result, await _explained(result, answers.model, request, body))
    # In ASCII, since an answer may have half a surrogate pair.
    return Response(json.dumps(whole, allow_nan=False), media_type="application/json")


async def _events(
    first: Piece | GenerationResult,
    pieces: AsyncGenerator[Piece | GenerationResult, None],
    form: Form,
    request: Request,
    body: Asked,
) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(pieces):
            for chunk in form.beginning():
                yield event(chunk)
            piece = first
            while isinstance(piece, Piece):
                for chunk in form.piece(piece):
                    yield event(chunk)
                piece = await anext(pieces)
        for chunk in form.end(piece, await _explained(piece, form.model, request, body)):
            yield event(chunk)
        if body.stream_options is not None and body.stream_options.include_usage:
            yield event(form.usage(piece))
        yield DONE
    except Exception as error:  # the status has been sent, so the error is an event
        yield event(as_api_error(error).body)


class EventStream(StreamingResponse):
    """Server-sent events that stop when the client disconnects."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # tells proxies not to buffer
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


async def _last(pieces: AsyncGenerator[Piece | GenerationResult, None]) -> GenerationResult:
    while not isinstance(piece := await anext(pieces), GenerationResult):
        pass
    return piece


async def _explained(result: GenerationResult, model: str, request: Request, body: Asked) -> Explained:
    metrics = result.metrics
    request.scope["samkv.log"] |= {
        "prompt_tokens": metrics.prompt_tokens,
        "cached_tokens": metrics.tokens_reused,
        "completion_tokens": result.num_written_tokens,
        "ttft_s": round(metrics.ttft_s, 4),
        "prefill": metrics.method,
    }
    return await to_thread.run_sync(explained, result, body.documents, model, body.explain)


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return the result of ``work``.

    Raises:
        ClientGoneError: the client disconnected, and the work was cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_error_handlers(app: FastAPI) -> None:
    async def failed(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=GONE)  # only the log shows it

    for kind in (ApiError, SamKVError, RequestValidationError, HTTPException):  # for others see Observed
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(ClientGoneError, gone)


def _page_headers(page: str) -> dict[str, str]:
    """Allow the page its own script and server only, whatever markup an answer or a document contains."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
