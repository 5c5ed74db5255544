"""One call: messages, tools, schema and options as what the engine takes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, BaseMessage

from langchain_samkv._messages import engine_messages
from langchain_samkv._responses import message_chunks
from langchain_samkv._structured import beginning_of_json, with_json_instruction
from langchain_samkv._tools import TextOnly, ToolCalls, beginning_of_call, chosen_tool
from samkv_rag.exceptions import ChatTemplateError
from samkv_rag.frameworks.messages import render
from samkv_rag.frameworks.options import call_options, parse_bool

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine
    from samkv_rag.model.tokenization import RenderedPrompt

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
    explain: bool = False
    """Whether the answer says what it was read from."""

    @classmethod
    def of_call(cls, own: Mapping[str, Any], given: Mapping[str, Any]) -> Request:
        """Return the request of a call: the model's ``own`` options, changed by those ``given``."""
        options = {name: value for name, value in given.items() if name not in _OF_LANGCHAIN}
        tools = options.pop("tools", None) or ()
        tool_choice, json_schema = options.pop("tool_choice", None), options.pop("json_schema", None)
        explain = parse_bool("explain", options.pop("explain", None), own["explain"])
        own = {name: value for name, value in own.items() if name != "explain"}
        return cls(call_options(own, options), tools, tool_choice, json_schema, explain)

    def answer(self, engine: SamKVEngine, messages: Sequence[BaseMessage]) -> Generator[AIMessageChunk, None, None]:
        """Yield the answer chunk by chunk; closing ends the generation.

        Raises:
            PromptError: a message holds something other than text.
            ChatTemplateError, ToolsUnsupportedError: the model's template refuses messages or tools.
            ConfigurationError: an option is unknown or out of range.
        """
        prompt, beginning = self._prompt(engine, messages)
        reader = ToolCalls() if self.tools else TextOnly()
        with closing(engine.stream(prompt + beginning, **self.options)) as stream:
            yield from message_chunks(stream, beginning, engine.model_name, reader, self.explain)

    def _prompt(self, engine: SamKVEngine, messages: Sequence[BaseMessage]) -> tuple[RenderedPrompt, str]:
        """Return the rendered messages, and how the answer begins where its form is given."""
        if not engine.has_chat_template:
            raise ChatTemplateError(f"{engine.model_name} has no chat template; take an instruction-tuned model")
        converted, beginning = engine_messages(messages), ""
        if self.json_schema is not None:
            converted = with_json_instruction(converted, self.json_schema)
            beginning = beginning_of_json(self.json_schema)
        prompt = render(engine, converted, self.tools)
        if tool := chosen_tool(self.tool_choice, [tool["function"]["name"] for tool in self.tools]):
            beginning = beginning_of_call(prompt.text, tool)
        return prompt, beginning
