"""One call: messages, tools, schema and options as what the engine takes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, BaseMessage

from langchain_samkv._messages import engine_messages
from langchain_samkv._responses import message_chunks
from samkv_rag.exceptions import ChatTemplateError
from samkv_rag.frameworks.options import call_options, parse_bool
from samkv_rag.frameworks.tools import TextOnly, ToolCalls, prompt_and_grammar

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine

_OF_LANGCHAIN = ("stream",)  # reaches the model, though it is a matter of which of its methods was called


@dataclass(frozen=True)
class Request:
    """What one call asks for, beside its messages."""

    options: dict[str, Any]
    """Of the engine."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Function schemas."""
    tool_choice: object = None
    json_schema: Mapping[str, Any] | None = None
    """What the answer must fit, as JSON."""
    parallel_tool_calls: bool = True
    explain: bool = False
    """Whether the answer says what it was read from."""

    @classmethod
    def of_call(cls, own: Mapping[str, Any], given: Mapping[str, Any]) -> Request:
        """Return the request of a call: the model's ``own`` options, changed by those ``given``."""
        options = {name: value for name, value in given.items() if name not in _OF_LANGCHAIN}
        tools = options.pop("tools", None) or ()
        tool_choice, json_schema = options.pop("tool_choice", None), options.pop("json_schema", None)
        explain = parse_bool("explain", options.pop("explain", None), own["explain"])
        parallel = parse_bool("parallel_tool_calls", options.pop("parallel_tool_calls", None), True)
        own = {name: value for name, value in own.items() if name != "explain"}
        return cls(call_options(own, options), tools, tool_choice, json_schema, parallel, explain)

    def answer(
        self, engine: SamKVEngine, messages: Sequence[BaseMessage]
    ) -> Generator[tuple[int, AIMessageChunk], None, None]:
        """Yield the answers chunk by chunk, each with the answer's number; closing ends the generation.

        Raises:
            PromptError: a message holds something other than text.
            ChatTemplateError, ToolsUnsupportedError: the model's template refuses messages or tools.
            ConfigurationError: an option is unknown or out of range.
        """
        if not engine.has_chat_template:
            raise ChatTemplateError(f"{engine.model_name} has no chat template; take an instruction-tuned model")
        prompt, grammar = prompt_and_grammar(
            engine,
            engine_messages(messages),
            self.tools,
            self.tool_choice,
            self.json_schema,
            self.parallel_tool_calls,
        )
        options = {"grammar": grammar} | self.options if grammar else self.options
        reader = ToolCalls if self.tools else TextOnly
        with closing(engine.stream(prompt, **options)) as stream:
            yield from message_chunks(stream, engine.model_name, reader, self.explain)
