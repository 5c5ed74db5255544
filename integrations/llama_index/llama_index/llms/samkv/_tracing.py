"""One pair of LLM events around a call.

LlamaIndex's decorators are applied to a single call instead of a method. A stream then keeps its source, and no
decorated method calls another one, which would count tokens twice.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

if TYPE_CHECKING:
    from llama_index.core.llms import LLM

T = TypeVar("T")


def traced(llm: LLM, asked: str | Sequence[ChatMessage], kwargs: Mapping[str, Any], respond: Callable[[], T]) -> T:
    """Return ``respond()``, reported as one completion or chat call."""
    callback = llm_completion_callback if isinstance(asked, str) else llm_chat_callback
    return cast(T, callback()(lambda *_args, **_kwargs: respond())(llm, asked, **kwargs))


def closing_source(stream: Generator[T, None, None], source: Generator[Any, None, None]) -> Generator[T, None, None]:
    """Yield from ``stream`` and close ``source`` with it.

    LlamaIndex's wrapper may leave its source open, and an event handler that stores the exception keeps the frames, and
    with them the generation, alive.
    """
    try:
        yield from stream
    finally:
        source.close()
