"""Answers in the form of OpenAI's two endpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from uuid import uuid4

from samkv_apps.serve.schema import Document
from samkv_rag import GenerationMetrics, GenerationResult
from samkv_rag.explanation import Explanation

DONE = b"data: [DONE]\n\n"


class Explained(NamedTuple):
    """What an answer was read from."""

    annotations: list[dict[str, Any]]
    """Of the answer: which parts of the request's documents were retained."""
    beside: dict[str, Any]
    """What stands beside the answer, in the response."""


@dataclass(frozen=True)
class Form:
    """One answer, whole or in chunks."""

    model: str
    is_chat: bool
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: GenerationResult, explained: Explained) -> dict[str, Any]:
        """The answer at once."""
        message = {"role": "assistant", "content": result.text, "refusal": None, "annotations": explained.annotations}
        said = {"message": message} if self.is_chat else {"text": result.text}
        return self._around(said, result.finish_reason) | {"usage": usage(result.metrics)} | explained.beside

    def beginning(self) -> dict[str, Any]:
        """A chat's first chunk, which says who speaks."""
        return self._chunk({"role": "assistant", "content": ""}, "")

    def piece(self, text: str) -> dict[str, Any]:
        """A chunk with a piece of the answer."""
        return self._chunk({"content": text}, text)

    def end(self, result: GenerationResult, explained: Explained) -> dict[str, Any]:
        """The chunk that says why the answer ended."""
        delta = {"annotations": explained.annotations} if explained.annotations else {}
        return self._chunk(delta, "", result.finish_reason) | explained.beside

    def usage(self, result: GenerationResult) -> dict[str, Any]:
        """The chunk that counts tokens."""
        return self._around({}, None, is_chunk=True) | {"choices": [], "usage": usage(result.metrics)}

    def _chunk(self, delta: dict[str, Any], text: str, finish_reason: str | None = None) -> dict[str, Any]:
        return self._around({"delta": delta} if self.is_chat else {"text": text}, finish_reason, is_chunk=True)

    def _around(self, said: dict[str, Any], finish_reason: str | None, is_chunk: bool = False) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' * is_chunk}" if self.is_chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}],
        }


def event(value: dict[str, Any]) -> bytes:
    """A value as a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def usage(metrics: GenerationMetrics) -> dict[str, Any]:
    """Tokens read and written; cached are those whose stored KV was read instead of computed."""
    return {
        "prompt_tokens": metrics.prompt_tokens,
        "completion_tokens": metrics.completion_tokens,
        "total_tokens": metrics.prompt_tokens + metrics.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": metrics.tokens_reused},
    }


def explained(result: GenerationResult, documents: Sequence[Document], model: str, how: bool | str) -> Explained:
    """What an answer was read from, as the request asked for it: nothing, data, or HTML to be shown as it is."""
    if not how:
        return Explained([], {})
    names = {document.text: document.title or document.id or "" for document in reversed(documents)}
    explanation = replace(result, model_name=model).explain().with_sources(names)
    shown = {"html": explanation.to_html(fragment=True)} if how == "html" else {"explanation": explanation.to_dict()}
    return Explained(_annotations(explanation, documents), {"samkv": {"metrics": result.metrics.to_dict(), **shown}})


def _annotations(explanation: Explanation, documents: Sequence[Document]) -> list[dict[str, Any]]:
    """For each document that was read: which parts of its text, as characters, were retained."""
    chunks = {chunk.text: chunk for chunk in explanation.chunks}
    cited = []
    for number, document in enumerate(documents):
        chunk = chunks.get(document.text.strip())
        if chunk is None or not chunk.retained:
            continue
        ahead = len(document.text) - len(document.text.lstrip())  # white space around it is not part of a chunk
        spans = [{"start_char": ahead + run.start_char, "stop_char": ahead + run.stop_char} for run in chunk.retained]
        citation = {"document": number, "id": document.id, "title": document.title, "spans": spans}
        cited.append({"type": "document_citation", "document_citation": citation})
    return cited
