"""What stands before the application: the key, the bound on bodies, a line in the log for every request."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samkv_apps.serve.errors import ApiError

logger = logging.getLogger("samkv_apps.serve")

OPEN_PATHS = frozenset(("/", "/health", "/ready", "/openapi.json"))
"""What is answered without the key: none of it says anything of documents or requests."""
_BODY_S = 30.0
"""The longest that a body may take to arrive."""


class Guard:
    """Lets requests through that have the key and a body of bounded size, which is read before they start.

    Args:
        app: what is guarded.
        api_key: None lets everybody in.
        max_body_bytes: a larger body is refused, at once where its length is declared.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._require_key(scope["path"], headers.get(b"authorization", b""))
            body = await self._body(headers.get(b"content-length", b"0"), receive)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    def _require_key(self, path: str, authorization: bytes) -> None:
        if self._api_key is None or path in OPEN_PATHS:
            return
        scheme, _, given = authorization.partition(b" ")
        right = hmac.compare_digest(given.strip(), self._api_key)  # takes as long whatever differs
        if not (right and scheme.lower() == b"bearer"):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, declared: bytes, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away while sending it."""
        if declared.isdigit() and int(declared[:20]) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        with anyio.move_on_after(_BODY_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                body += message.get("body", b"")
                if len(body) > self._max_body_bytes:
                    raise self._too_large()
                if not message.get("more_body", False):
                    return bytes(body)
        raise ApiError(408, f"the body did not arrive within {_BODY_S:.0f} s; send it faster", code="timeout")

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._max_body_bytes:,} bytes; send fewer documents at once"
        return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})


class Observed:
    """Writes a line to the log for every request, and counts it. Neither holds anything of its content."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # where nothing is sent, the client has gone
        fields: dict[str, Any] = {}
        scope["samkv.log"] = fields  # what the answer adds

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the path: clients choose those
            self._count(route, status)
            fields |= {"method": scope["method"][:10], "route": route, "status": status}
            logger.info("request", extra={"fields": fields | {"seconds": round(time.perf_counter() - started, 4)}})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that hands over the whole body first; then it tells when the client goes away."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
