"""One pair of LLM events around a call.

LlamaIndex's decorators, put around one call instead of a method: a stream then keeps hold of what it
reads from (see samkv_rag.frameworks.streams), and no decorated method calls another, which would count tokens twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

T = TypeVar("T")


def traced_chat(llm: LLM, messages: Sequence[ChatMessage], kwargs: Mapping[str, Any], respond: Callable[[], T]) -> T:
    """Return ``respond()``, reported as one chat call."""

    def call(_llm: LLM, _messages: Sequence[ChatMessage], **_kwargs: Any) -> T:
        return respond()

    return cast(T, llm_chat_callback()(call)(llm, messages, **kwargs))


def traced_completion(llm: LLM, prompt: str, kwargs: Mapping[str, Any], respond: Callable[[], T]) -> T:
    """Return ``respond()``, reported as one completion call."""

    def call(_llm: LLM, _prompt: str, **_kwargs: Any) -> T:
        return respond()

    return cast(T, llm_completion_callback()(call)(llm, prompt, **kwargs))
