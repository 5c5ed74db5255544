"""The ways to call ChatSamKV, and a question whose chunks are stored."""

from __future__ import annotations

import asyncio
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from langchain_samkv import ChatSamKV
from samkv_rag import SamKVEngine
from support import tiny
from tests.scripted import tiny_engine

CHUNKS = [tiny.text(seed, num_words=30) for seed in range(3)]
QUESTION = "\n\n".join([*CHUNKS, "What does the seventh keeper record?"])
FORMS = ["invoke", "stream", "batch", "ainvoke", "astream", "abatch"]
every_form = pytest.mark.parametrize("form", FORMS)
awaited_forms = pytest.mark.parametrize("form", ["ainvoke", "astream"])


def ingested_engine() -> SamKVEngine:
    engine = tiny_engine()
    engine.add_chunks(CHUNKS)
    engine.generate([{"role": "user", "content": QUESTION}], max_new_tokens=1)  # stores the prompt's head too
    return engine


def ask(llm: ChatSamKV, form: str, question: str = QUESTION, **options: Any) -> AIMessage:
    """The whole message."""
    if form.startswith("a"):
        return asyncio.run(aask(llm, form, question, **options))
    if form == "stream":
        return reduce(add, llm.stream(question, **options))
    return llm.batch([question], **options)[0] if form == "batch" else llm.invoke(question, **options)


async def aask(llm: ChatSamKV, form: str, question: str = QUESTION, **options: Any) -> Any:
    """The same in an event loop."""
    if form == "astream":
        return reduce(add, [chunk async for chunk in llm.astream(question, **options)])
    return (await llm.abatch([question], **options))[0] if form == "abatch" else await llm.ainvoke(question, **options)
