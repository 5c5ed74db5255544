"""Format answers for OpenAI's two endpoints."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeGuard
from uuid import uuid4

from samkv_apps.serve.schema import ChatRequest, CompletionRequest, Document
from samkv_rag import GenerationResult, Piece, TokenLogprob
from samkv_rag.explanation import Explanation
from samkv_rag.frameworks.logprobs import logprobs_content
from samkv_rag.frameworks.tools import ToolCall, ToolCalls

DONE = b"data: [DONE]\n\n"


class Explained(NamedTuple):
    """What an answer was read from."""

    annotations: list[dict[str, Any]]
    """The answer's annotations: the retained parts of the request's documents."""
    beside: dict[str, Any]
    """Additional fields of the response."""


class Form:
    """The answers to one request, whole or in chunks."""

    def __init__(self, model: str, request: ChatRequest | CompletionRequest) -> None:
        self.model = model
        self._is_chat = isinstance(request, ChatRequest)
        self._num_answers = request.n or 1
        tools, parallel = [], True
        if isinstance(request, ChatRequest):
            tools, parallel = request.function_schemas, request.parallel_tool_calls is not False
        self._readers = defaultdict[int, ToolCalls](partial(ToolCalls, tools, parallel))
        self._num_calls: dict[int, int] = defaultdict(int)
        self._num_chars: dict[int, int] = defaultdict(int)
        self._id = uuid4().hex
        self._created = int(time.time())

    def whole(self, result: GenerationResult, explained: Explained) -> dict[str, Any]:
        """Return the complete response."""
        choices = []
        for index, one in enumerate((result, *result.others)):
            said = [*self._readers[index].add(one.text), *self._readers[index].finish()]
            text, calls = "".join(_readable(said)), [_call(call) for call in said if _is_call(call)]
            message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
            message |= {"annotations": explained.annotations} | ({"tool_calls": calls} if calls else {})
            shown: dict[str, Any] = {"message": message} if self._is_chat else {"text": text}
            choices.append(self._choice(index, shown, _finish_reason(one, bool(calls)), one.logprobs))
        return self._around(choices) | {"usage": usage(result)} | explained.beside

    def beginning(self) -> Iterator[dict[str, Any]]:
        """Yield a chat's first chunks, which have the role."""
        if self._is_chat:
            for index in range(self._num_answers):
                yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """Yield the chunks for a piece of an answer; text that may become a tool call is held back."""
        deltas = self._deltas(piece.index, self._readers[piece.index].add(piece.text))
        if piece.logprobs and not deltas:
            deltas = [self._text("")]
        for number, delta in enumerate(deltas):
            yield self._chunk(piece.index, delta, logprobs=() if number else piece.logprobs)

    def end(self, result: GenerationResult, explained: Explained) -> Iterator[dict[str, Any]]:
        """Yield the last chunks, which have the finish reasons."""
        for index, one in enumerate((result, *result.others)):
            for delta in self._deltas(index, self._readers[index].finish()):
                yield self._chunk(index, delta)
            delta = {"annotations": explained.annotations} if explained.annotations else {}
            reason = _finish_reason(one, self._num_calls[index] > 0)
            last = explained.beside if index == len(result.others) else {}
            yield self._chunk(index, delta if self._is_chat else self._text(""), reason) | last

    def usage(self, result: GenerationResult) -> dict[str, Any]:
        """Return the chunk with the token counts."""
        return self._around([], is_chunk=True) | {"usage": usage(result)}

    def _text(self, text: str) -> dict[str, Any]:
        return {"content": text} if self._is_chat else {"text": text}

    def _deltas(self, index: int, said: Iterable[str | ToolCall]) -> list[dict[str, Any]]:
        deltas = []
        for one in said:
            if _is_call(one):
                deltas.append({"tool_calls": [{"index": self._num_calls[index]} | _call(one)]})
                self._num_calls[index] += 1
            else:
                deltas.append(self._text(*_readable([one])))
        return deltas

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
    ) -> dict[str, Any]:
        shown = {"delta": delta} if self._is_chat else delta
        return self._around([self._choice(index, shown, finish_reason, logprobs)], is_chunk=True)

    def _choice(
        self, index: int, shown: dict[str, Any], finish_reason: str | None, logprobs: Sequence[TokenLogprob]
    ) -> dict[str, Any]:
        form = None
        if logprobs:
            form = (
                {"content": logprobs_content(logprobs)} if self._is_chat else self._completion_logprobs(index, logprobs)
            )
        return {"index": index, **shown, "logprobs": form, "finish_reason": finish_reason}

    def _completion_logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return log probabilities in the form of ``/v1/completions``."""
        ends = [*accumulate((len(one.text) for one in logprobs), initial=self._num_chars[index])]
        self._num_chars[index] = ends[-1]
        return {
            "tokens": [one.text for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{other.text: other.logprob for other in one.top} for one in logprobs],
            "text_offset": ends[:-1],
        }

    def _around(self, choices: list[dict[str, Any]], is_chunk: bool = False) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{self._id}",
            "object": f"chat.completion{'.chunk' * is_chunk}" if self._is_chat else "text_completion",
            "created": self._created,
            "model": self.model,
            "choices": choices,
        }


def _is_call(said: str | ToolCall) -> TypeGuard[ToolCall]:
    """Return whether this is a well-formed call. Others are returned as text."""
    return isinstance(said, ToolCall) and said.name is not None


def _readable(said: Iterable[str | ToolCall]) -> list[str]:
    return [one if isinstance(one, str) else one.arguments for one in said if not _is_call(one)]


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _finish_reason(result: GenerationResult, has_calls: bool) -> str:
    return "tool_calls" if has_calls and result.finish_reason == "stop" else result.finish_reason


def event(value: dict[str, Any]) -> bytes:
    """Encode a value as a server-sent event, in ASCII: an answer may have half a surrogate pair."""
    return f"data: {json.dumps(value)}\n\n".encode()


def usage(result: GenerationResult) -> dict[str, Any]:
    """Return the numbers of tokens. Cached tokens are those whose KV was read instead of computed."""
    metrics = result.metrics
    return {
        "prompt_tokens": metrics.prompt_tokens,
        "completion_tokens": result.num_written_tokens,
        "total_tokens": metrics.prompt_tokens + result.num_written_tokens,
        "prompt_tokens_details": {"cached_tokens": metrics.tokens_reused},
    }


def explained(result: GenerationResult, documents: Sequence[Document], model: str, how: bool | str) -> Explained:
    """Return what an answer was read from, in the requested form: nothing, data, or escaped HTML."""
    if not how:
        return Explained([], {})
    names = {document.text: document.title or document.id or "" for document in reversed(documents)}
    explanation = replace(result, model_name=model).explain().with_sources(names)
    shown = {"html": explanation.to_html(fragment=True)} if how == "html" else {"explanation": explanation.to_dict()}
    return Explained(_annotations(explanation, documents), {"samkv": {"metrics": result.metrics.to_dict(), **shown}})


def _annotations(explanation: Explanation, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Return the retained parts of each document as character spans, strongest first."""
    cited, spans_of = [], explanation.cite(document.text for document in documents)
    for number, (document, spans) in enumerate(zip(documents, spans_of, strict=True)):
        if spans:
            shown = [span._asdict() for span in spans]
            citation = {"document": number, "id": document.id, "title": document.title, "spans": shown}
            cited.append({"type": "document_citation", "document_citation": citation})
    return cited
