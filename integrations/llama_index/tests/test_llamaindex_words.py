"""Callers' words on a real engine: n, log probabilities, grammars."""

from __future__ import annotations

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import Grammar, SamKVEngine

MESSAGES = [ChatMessage(role="user", content="Who keeps the light?")]


def test_other_answers_are_beside_the_first(tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=8, temperature=1.5)
    alone = [llm.chat(MESSAGES, seed=3 + i).message.content for i in range(3)]
    response = llm.chat(MESSAGES, seed=3, n=3)
    assert [response.message.content, *response.raw["others"]] == alone
    streamed = list(llm.stream_chat(MESSAGES, seed=3, n=3))
    assert "".join(one.delta or "" for one in streamed) == streamed[-1].message.content == alone[0]
    assert "others" not in llm.chat(MESSAGES).raw


def test_logprobs_are_the_engines(tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=8)
    asked: Any = [{"role": "user", "content": "Who keeps the light?"}]
    for top in (0, 2):
        expected = tiny_engine.generate(asked, max_new_tokens=8, logprobs=True, top_logprobs=top).logprobs
        for response in (
            llm.chat(MESSAGES, logprobs=True, top_logprobs=top),
            llm.complete(MESSAGES[0].content or "", logprobs=True, top_logprobs=top),
            list(llm.stream_chat(MESSAGES, logprobs=True, top_logprobs=top))[-1],
        ):
            found = [[(one.token, one.logprob) for one in token] for token in response.logprobs or ()]
            assert found == [[(one.text, one.logprob) for one in token.top or (token,)] for token in expected]
    assert llm.chat(MESSAGES).logprobs is None


def test_a_grammar_is_kept_to(tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=8)
    assert llm.chat(MESSAGES, grammar=Grammar.choices(["left", "right"])).message.content in ("left", "right")
