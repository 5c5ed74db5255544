"""Answers as objects of a class: decoding keeps to its schema, and the class validates the result."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # re-exported
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.program.streaming_utils import process_streaming_content_incremental
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model

from samkv_rag.exceptions import ConfigurationError

_dispatcher = get_dispatcher(__name__)


def asked_for(output_cls: type[Model], prompt: PromptTemplate, prompt_args: dict[str, Any]) -> None:
    """Report the beginning of a call for an object, as LlamaIndex's own methods do."""
    _dispatcher.event(LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args))


def answered(found: Model) -> Model:
    """Report the end of a call for an object, and return the object."""
    _dispatcher.event(LLMStructuredPredictEndEvent(output=found))
    return found


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
        was_cut_off = (response.raw or {}).get("finish_reason") == "length"
        remedy = "it was cut off, raise max_tokens" if was_cut_off else "ask for it in other words"
        raise ConfigurationError(f"the answer is not a valid {output_cls.__name__}; {remedy}: {error}") from error
