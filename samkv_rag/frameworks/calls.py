"""A framework's call of an LLM as a stream of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from samkv_rag.exceptions import ToolsUnsupportedError
from samkv_rag.frameworks.messages import Message, render, with_json_instruction
from samkv_rag.frameworks.options import OWN_CALL_OPTIONS, call_options, parse_bool
from samkv_rag.frameworks.threads import cancellable
from samkv_rag.frameworks.tools import ToolCalls, answer_grammar, chosen_tool, names_of

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine
    from samkv_rag.model.tokenization import RenderedPrompt
    from samkv_rag.runtime.stream import AnswerStream

_NOT_THE_ENGINES = ("explain", "tools", "tool_choice", "parallel_tool_calls", "json_schema")


def engine_options(llm: object, given: Mapping[str, Any], ignored: str) -> dict[str, Any]:
    """Return the engine's options of a call: the LLM's fields, updated by those ``given`` except one ``ignored``."""
    own = {name: getattr(llm, name) for name in OWN_CALL_OPTIONS}
    return call_options(own, {name: given[name] for name in given if name not in (*_NOT_THE_ENGINES, ignored)})


def open_stream(
    engine: SamKVEngine, prompt: str | Sequence[Message], given: Mapping[str, Any], options: dict[str, Any]
) -> tuple[AnswerStream, Callable[[], ToolCalls]]:
    """Return the stream of an answer to a text or to messages, and what makes readers of its tool calls."""
    asked: str | RenderedPrompt
    tools, schema = given.get("tools") or (), given.get("json_schema")
    parallel = parse_bool("parallel_tool_calls", given.get("parallel_tool_calls"), True)
    if not isinstance(prompt, str):
        chosen = chosen_tool(given.get("tool_choice"), names_of(tools))
        asked = render(engine, prompt if schema is None else with_json_instruction(prompt, schema), tools)
        grammar = answer_grammar(engine.tokenizer.template, tools, chosen, schema, parallel, True)
    elif tools:
        raise ToolsUnsupportedError(
            f"{len(tools)} tools given, but only a chat template can show tools; take a model that has one, "
            "without messages_to_prompt"
        )
    else:
        asked, grammar = prompt, answer_grammar("", schema=schema, lenient=True)
    options = {"grammar": grammar} | options if grammar else options
    return cancellable(engine.stream(asked, **options)), partial(ToolCalls, tools, parallel)
