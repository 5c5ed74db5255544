"""Middleware: the API key, the limit on bodies, and a line in the log for every request."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samkv_apps.serve.errors import ApiError, as_api_error

logger = logging.getLogger("samkv_apps.serve")

OPEN_PATHS = frozenset(("/", "/health", "/ready", "/openapi.json"))
"""Paths that need no key. None of them reveals anything about documents or requests."""
GONE = 499
"""Status, in the log only, of a request whose client disconnected."""
_BODY_S = 30.0
"""Seconds within which a body must arrive."""


class Guard:
    """Checks the key and reads the body, within a limit, before a request reaches the application.

    Args:
        app: the application.
        api_key: None: no key is needed.
        max_body_bytes: larger bodies are refused, at once if their length is declared.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_body_bytes: int) -> None:
        self._app = app
        self._api_key = None if api_key is None else api_key.encode()
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
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
        right = hmac.compare_digest(given.strip(), self._api_key)  # in constant time
        if not (right and scheme.lower() == b"bearer"):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, declared: bytes, receive: Receive) -> bytes | None:
        """Read the whole body; None if the client disconnected."""
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
    """Logs and counts every request, without its content."""

    def __init__(self, app: ASGIApp, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), GONE  # if nothing is sent, the client has disconnected
        fields: dict[str, Any] = {}
        scope["samkv.log"] = fields  # the answer adds more

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, observed_send)
        except Exception as error:  # Starlette's own handler would answer out of sight, and close the connection
            if status != GONE:
                raise  # in the middle of an answer
            await as_api_error(error).response()(scope, receive, observed_send)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # not the path, which clients choose
            self._count(route, status)
            fields |= {"method": scope["method"][:10], "route": route, "status": status}
            logger.info("request", extra={"fields": fields | {"seconds": round(time.perf_counter() - started, 4)}})


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that first returns the whole body, then waits for the disconnect."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
