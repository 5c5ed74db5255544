"""Log probabilities in OpenAI's format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samkv_rag import TokenLogprob


def logprobs_content(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Return ``logprobs.content`` of an answer, with one entry per token."""
    return [_entry(one) | {"top_logprobs": [_entry(other) for other in one.top]} for one in logprobs]


def token_bytes(text: str) -> list[int] | None:
    """Return the UTF-8 bytes of a token's text; None if it is a part of a character."""
    return None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())


def _entry(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": token_bytes(one.text)}
