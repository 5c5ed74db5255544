"""Structured answers: the prompt asks for JSON, decoding keeps to its schema, and the parser checks it."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

import jsonschema
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import (
    BaseCumulativeTransformOutputParser,
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass

METHODS = ("json_schema", "json_mode", "function_calling")


def parsed(
    llm: Runnable[LanguageModelInput, AIMessage], schema: dict[str, Any] | type, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return ``llm`` followed by a parser that checks against ``schema``.

    With ``include_raw``, the result is a dict of ``raw``, ``parsed`` and ``parsing_error``, and an answer that does
    not fit raises no error.
    """
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _followed_by(WholePydanticParser(pydantic_object=schema), llm, include_raw)
    return _followed_by(JsonSchemaParser(json_schema=convert_to_json_schema(schema)), llm, include_raw)


def parsed_call(
    llm: Runnable[LanguageModelInput, AIMessage], schema: dict[str, Any] | type, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """Return ``llm``, which must call the tool ``schema``, followed by a parser of the call; else as :func:`parsed`."""
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        return _followed_by(WholePydanticCallParser(tools=[schema], first_tool_only=True), llm, include_raw)
    name = convert_to_openai_tool(schema)["function"]["name"]
    return _followed_by(WholeCallParser(key_name=name, first_tool_only=True), llm, include_raw)


def _followed_by(
    parser: BaseOutputParser[Any], llm: Runnable[LanguageModelInput, AIMessage], include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    if not include_raw:
        return llm | parser
    parse = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=llm) | parse.with_fallbacks([failed], exception_key="parsing_error")


class WholePydanticParser(PydanticOutputParser[Any]):
    """Refuses an answer that was cut off, which LangChain's own parsers complete."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the object.

        Raises:
            OutputParserException: the answer is not whole JSON, or does not fit the schema.
        """
        if not partial:
            _whole(result[0].text)
        return super().parse_result(result, partial=partial)


class JsonSchemaParser(BaseCumulativeTransformOutputParser[Any]):
    """JSON as a dict. Whole answers are checked against a schema, the growing dicts of a stream are not."""

    json_schema: dict[str, Any]

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the dict.

        Raises:
            OutputParserException: the answer is not whole JSON, or does not fit the schema.
        """
        if partial:
            return JsonOutputParser().parse_result(result, partial=True)
        value = _whole(result[0].text)
        try:
            jsonschema.validate(value, self.json_schema)
        except jsonschema.ValidationError as error:
            words = f"the answer does not fit the schema: {error.message}"
            raise OutputParserException(words, llm_output=result[0].text) from error
        return value

    def parse(self, text: str) -> Any:
        """Return the dict in ``text``; raise as :meth:`parse_result` does."""
        return self.parse_result([Generation(text=text)])


class _WholeCall:
    """Refuses an answer without a whole call, of which LangChain's own parsers make None."""

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Return the call's arguments.

        Raises:
            OutputParserException: the call was cut off.
        """
        generation = result[0]
        if not partial and isinstance(generation, ChatGeneration) and not getattr(generation.message, "tool_calls", ()):
            raise OutputParserException("the answer calls no tool, or was cut off", llm_output=generation.text)
        return super().parse_result(result, partial=partial)  # type: ignore[misc]


class WholePydanticCallParser(_WholeCall, PydanticToolsParser):
    """The arguments of a call as an object."""


class WholeCallParser(_WholeCall, JsonOutputKeyToolsParser):
    """The arguments of a call as a dict."""


def _whole(text: str) -> Any:
    """Return the JSON in ``text``, which LangChain's parsers would complete if it was cut off."""
    try:
        return parse_json_markdown(text, parser=json.loads)
    except json.JSONDecodeError as error:
        words = f"the answer is not JSON, or was cut off ({error}); allow more tokens"
        raise OutputParserException(words, llm_output=text) from error
