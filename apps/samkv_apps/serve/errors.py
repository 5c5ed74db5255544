"""Errors in OpenAI's form."""

from __future__ import annotations

import json
import logging
import re
import reprlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from samkv_rag.exceptions import (
    ChunkError,
    ConfigurationError,
    EngineClosedError,
    PromptError,
    PromptTooLongError,
    QueueFullError,
    StoreError,
    StoreFullError,
)

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
_MAX_CHARS = 1000
_WORDS = {
    "string_pattern_mismatch": "it must contain more than white space",
    "too_short": "it must not be empty",
}
_UNION_MEMBERS = ("str", "bool", "body")  # pydantic mixes them with field names in a field's path


class ApiError(Exception):
    """An error response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        shown = message if len(message) <= _MAX_CHARS else f"{message[: _MAX_CHARS - 1]}…"  # it may quote the request
        self.body = {"error": {"message": shown, "type": kind, "param": param, "code": code}}

    def __reduce__(self) -> tuple[Any, ...]:  # pickled by Ray's replicas
        told: Any = self.body["error"]
        again = partial(ApiError, kind=told["type"], param=told["param"], code=told["code"], headers=self.headers)
        return again, (self.status, str(self))

    def response(self) -> Response:
        """Return the response, in ASCII, since a message may quote text that is not valid Unicode."""
        return Response(json.dumps(self.body), self.status, self.headers, "application/json")


def queue_full(message: str) -> ApiError:
    """Return the error for too many waiting requests."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(429, message, kind="rate_limit_error", code="queue_full", headers=headers)


def as_api_error(error: BaseException) -> ApiError:
    """Return the error response for any error. The details of the server's own failures are only logged."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, PromptTooLongError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, (ConfigurationError, PromptError, ChunkError)):
        return ApiError(400, str(error))
    if isinstance(error, QueueFullError):
        return queue_full(str(error))
    logger.error("a request failed", exc_info=error)
    if isinstance(error, EngineClosedError):
        return ApiError(503, "the server is shutting down; send the request to another", kind="server_error")
    if isinstance(error, StoreFullError):
        return ApiError(507, "the store is full; delete documents or give it more room", kind="server_error")
    if isinstance(error, StoreError):
        return ApiError(503, "the store cannot be used at present; try again later", kind="server_error")
    return ApiError(500, "the server failed; its log says why", kind="server_error")


def _invalid(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """Return the error for pydantic's deepest problem. It is the real one, since every member of a union complains."""
    worst = max(problems, key=lambda problem: len(problem["loc"]))
    if worst["type"] == "json_invalid" or worst["loc"] == ("body",):
        return ApiError(400, "the body is not a JSON object; send one, with Content-Type: application/json")
    parts = [str(part) for part in worst["loc"] if part not in _UNION_MEMBERS]
    name = ".".join(part for part in parts if re.fullmatch(r"[a-z_]+|\d+", part))
    if worst["type"] == "missing":
        return ApiError(400, f"{name} is missing; send it", param=name)
    said = _WORDS.get(worst["type"], worst["msg"].removeprefix("Value error, ").replace("Input", "it", 1))
    return ApiError(400, f"{name or 'the body'} is {reprlib.repr(worst['input'])}: {said}", param=name or None)
