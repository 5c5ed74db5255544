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
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
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
    parser: BaseOutputParser[Any]
    if isinstance(schema, type) and is_basemodel_subclass(schema):
        parser = WholePydanticParser(pydantic_object=schema)
    else:
        parser = JsonSchemaParser(json_schema=convert_to_json_schema(schema))
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


def _whole(text: str) -> Any:
    """Return the JSON in ``text``, which LangChain's parsers would complete if it was cut off."""
    try:
        return parse_json_markdown(text, parser=json.loads)
    except json.JSONDecodeError as error:
        words = f"the answer is not JSON, or was cut off ({error}); allow more tokens"
        raise OutputParserException(words, llm_output=text) from error
