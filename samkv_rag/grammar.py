"""Grammars that answers must follow."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from samkv_rag.exceptions import ConfigurationError

_AS_JSON_DUMPS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Fixed white space: small models that may write white space write nothing else."""
_OF_OTHER_PROPERTIES = frozenset(("$ref", "additionalProperties", "patternProperties"))
_JOINED = frozenset(("$ref", "anyOf", "oneOf"))
"""Schemas whose properties come to an object's own; closed, each would forbid the other's."""
_WITH_SCHEMAS = frozenset(("anyOf", "items", "oneOf", "prefixItems"))
_WITH_NAMED_SCHEMAS = frozenset(("$defs", "definitions", "properties"))


@dataclass(frozen=True)
class Grammar:
    """The form of an answer. Decoding chooses only tokens that can lead to it.

    Needs the extra ``guided``. An answer cut off by ``max_new_tokens`` is the beginning of an answer of that form.

    Args:
        lark: a grammar in llguidance's dialect of Lark, whose rule ``start`` is the whole answer.
    """

    lark: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> Grammar:
        """JSON that fits a schema, on one line; True fits anything. Objects have only properties that it names."""
        return cls(f"start: {json_terms(schema)}")

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """Text that a regular expression matches as a whole, in the syntax of Rust's ``regex``."""
        return cls(f"start: /{llguidance().regex_to_lark(pattern, '')}/")

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts.

        Raises:
            ConfigurationError: there are none, or one is empty.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise ConfigurationError(f"choices are {texts!r}; they must be texts that are not empty, at least one")
        return cls(f"start: {' | '.join(map(json.dumps, texts))}")


def json_terms(schema: Mapping[str, Any] | bool, lenient: bool = False) -> str:
    """Return a term of a grammar for JSON that fits a schema; ``lenient`` leaves out what no grammar can express."""
    try:
        given = {} if schema is True else dict(schema)  # type: ignore[arg-type]
        closed = given if '"allOf"' in json.dumps(given) else _closed(given)  # allOf cannot join closed schemas
        return f"%json {json.dumps({'x-guidance': _AS_JSON_DUMPS | {'lenient': lenient}, **closed})}"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"the JSON schema is {reprlib.repr(schema)}: {error}; it must be a mapping of JSON's values"
        ) from error


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have only the properties that it names, unless it mentions others.

    A model that may invent properties does not stop. What fits the result also fits ``schema``.
    """
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict) or ("properties" in schema and schema.keys() & _JOINED):
        return schema
    closed = {name: _closed(one) if name in _WITH_SCHEMAS else one for name, one in schema.items()}
    for name in _WITH_NAMED_SCHEMAS & schema.keys():
        closed[name] = {key: _closed(one) for key, one in dict(schema[name]).items()}
    if "properties" in schema and not schema.keys() & _OF_OTHER_PROPERTIES:
        closed["additionalProperties"] = not set(schema.get("required", ())) <= set(schema["properties"])
    return closed


def llguidance() -> Any:
    """Import the library that enforces grammars, or say how to install it."""
    try:
        return import_module("llguidance")
    except ImportError as error:
        raise ConfigurationError("grammars need llguidance; pip install 'samkv-rag[guided]'") from error
