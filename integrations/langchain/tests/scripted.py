"""A real engine whose tool calls and JSON come from a script.

The script reads the rendered prompt: it finds the tools and the JSON schema that the template wrote, and keeps to the
grammar. So an answer is right only if all of that reached the prompt. Metrics and all other answers are the engine's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

from samkv_rag import EngineConfig, GenerationResult, Grammar, Piece, SamKVEngine
from samkv_rag.model.tokenization import RenderedPrompt
from support import tiny

PIECE_CHARS = 7


def tiny_engine(chat_template: str | None = tiny.CHAT_TEMPLATE) -> SamKVEngine:
    """An engine on a tiny random model with this template."""
    tokenizer = tiny.tokenizer_with(chat_template)
    config = EngineConfig(block_tokens=8)
    return SamKVEngine.from_pretrained(tiny.model(), tokenizer=tokenizer, config=config, method=tiny.method())


class ScriptedEngine:
    """``engine``, except for its answers when tools or JSON are asked for."""

    def __init__(self, engine: SamKVEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def stream(self, prompt: RenderedPrompt, **options: Any) -> Any:
        grammar = options.get("grammar")
        if (words := script(prompt.text, grammar)) is None:
            return self._engine.stream(prompt, **options)
        if grammar is not None:
            matcher = self._engine._guide.matcher(grammar)
            for token_id in self._engine.tokenize(words):
                matcher.consume(token_id)  # raises where the grammar does not allow it
        return ScriptedStream(partial(self._engine.generate, prompt, **options | {"max_new_tokens": 1}), words)


class ScriptedStream:
    """``words`` piece by piece, with the real engine's metrics at the end."""

    def __init__(self, ask: Callable[[], GenerationResult], words: str) -> None:
        self._ask, self._words = ask, words

    def __iter__(self) -> Iterator[Piece]:
        real = self._ask()
        for start in range(0, len(self._words), PIECE_CHARS):
            yield Piece(self._words[start : start + PIECE_CHARS])
        self.result = replace(real, text=self._words, finish_reason="stop")

    def close(self) -> None: ...


def script(prompt: str, grammar: Grammar | None) -> str | None:
    """The answer to ``prompt``; None means the real engine's answer."""
    conversation, lark = prompt.rpartition("<|assistant|>\n")[0], grammar.lark if grammar else ""
    if "start: %json" in lark:
        (schema,) = re.findall(r"fit this JSON schema:\n(.*?)</s>", conversation)
        return json.dumps(_values(json.loads(schema), _question(conversation)))
    if "<tools>" not in conversation or (not lark and _last_role(conversation) == "tool"):
        return None
    call = json.dumps(_call(conversation, lark), ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def _call(conversation: str, lark: str) -> dict[str, Any]:
    listed = conversation.partition("<tools>\n")[2].partition("\n</tools>")[0].splitlines()
    tools = {tool["function"]["name"]: tool["function"] for tool in map(json.loads, listed)}
    named = re.search(r'\\"name\\": \\"(\w+)\\"', lark)
    tool = tools[named[1]] if named else next(iter(tools.values()))
    return {"name": tool["name"], "arguments": _values(tool["parameters"], _question(conversation))}


def _values(schema: dict[str, Any], question: str) -> dict[str, Any]:
    """A value for every property: the question's number, its quoted words, or the whole question."""
    number = re.search(r"\((\d+)\)", question)
    quoted = re.search(r"'(.+?)'", question)
    text = quoted[1] if quoted else question
    return {
        name: (int(number[1]) if number else 0) if kind.get("type") == "integer" else text
        for name, kind in schema.get("properties", {}).items()
    }


def _question(conversation: str) -> str:
    return re.findall(r"<\|user\|>\n(.*?)</s>", conversation, re.DOTALL)[-1].strip()


def _last_role(conversation: str) -> str:
    return re.findall(r"<\|(\w+)\|>", conversation)[-1]


@cache
def scripted_engine() -> Any:
    """One for all tests; its only state is chunks."""
    return ScriptedEngine(tiny_engine(tiny.TOOL_TEMPLATE))
