"""Answers as objects of a class: decoding keeps to its schema, and the class validates the result."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.types import Model

from samkv_rag.exceptions import ConfigurationError


def growing_objects(
    responses: Generator[ChatResponse, None, None], output_cls: type[Model]
) -> Generator[Any, None, None]:
    """Yield the object as its JSON grows, then the whole object; raise as :func:`as_object` does."""
    current: Any = None
    with closing(responses):
        for response in responses:
            current = process_streaming_content_incremental(response, output_cls, current)
            yield current
    yield as_object(response, output_cls)


def as_object(response: ChatResponse, output_cls: type[Model]) -> Model:
    """Return the answer as an object.

    Raises:
        ConfigurationError: the answer was cut off, or the class refuses an answer that fits its schema. LlamaIndex
            would turn a ValueError into an empty answer.
    """
    try:
        return output_cls.model_validate_json(response.message.content or "")
    except ValueError as error:
        reason = (response.raw or {}).get("finish_reason")
        raise ConfigurationError(
            f"the answer ended by {reason!r} and is not a valid {output_cls.__name__}; raise max_tokens if that is "
            f"'length': {error}"
        ) from error
