"""The eight ways to call SamKVLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.samkv import SamKVLLM

ASYNC_FORMS = ["acomplete", "achat", "astream_complete", "astream_chat"]
FORMS = ["complete", "chat", "stream_complete", "stream_chat", *ASYNC_FORMS]
every_form = pytest.mark.parametrize("form", FORMS)
every_async_form = pytest.mark.parametrize("form", ASYNC_FORMS)


def call(llm: SamKVLLM, form: str, prompt: str, **options: Any) -> Any:
    """Return what the call returns: a response, a stream, or a coroutine of one of them."""
    asked: Any = prompt if "complete" in form else [ChatMessage(role="user", content=prompt)]
    return getattr(llm, form)(asked, **options)


def ask(llm: SamKVLLM, form: str, prompt: str, **options: Any) -> Any:
    """Return the response, or a stream's last one."""
    if form in ASYNC_FORMS:
        return asyncio.run(aask(llm, form, prompt, **options))
    result = call(llm, form, prompt, **options)
    return list(result)[-1] if "stream" in form else result


async def aask(llm: SamKVLLM, form: str, prompt: str, **options: Any) -> Any:
    """Do the same for the async forms."""
    result: Coroutine[Any, Any, Any] = call(llm, form, prompt, **options)
    return [response async for response in await result][-1] if "stream" in form else await result


def text_of(response: Any) -> str:
    return str(response.text if hasattr(response, "text") else response.message.content)
