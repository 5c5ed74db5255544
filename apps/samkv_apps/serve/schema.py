"""The requests' models. They check requests and define the OpenAPI document."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from samkv_apps.serve.errors import ApiError
from samkv_rag.checks import half_pair_at
from samkv_rag.frameworks.messages import template_role
from samkv_rag.frameworks.tools import chosen_tool
from samkv_rag.runtime.sampling import MIN_TEMPERATURE

DEFAULT_MAX_TOKENS = 1024
MAX_DOCUMENTS = 1000

MAX_TOOLS = 128
_MAX_DEPTH = 64
_MAX_VALUES = 2000
_MAX_MULTIPLE = 10_000

T = TypeVar("T")

_FUNCTIONS = "functions are called tools now; send tools and tool_choice"
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "the model reads and writes text; leave it out"),
    "best_of": ((1,), "answers are not ranked; send n for several"),
    "echo": ((False,), "put the prompt before the answer yourself"),
    "frequency_penalty": ((0,), "use repetition_penalty, which multiplies"),
    "function_call": ((), _FUNCTIONS),
    "functions": (([],), _FUNCTIONS),
    "logit_bias": (({},), "tokens cannot be favoured; leave it out"),
    "modalities": ((["text"],), "the model reads and writes text; leave it out"),
    "presence_penalty": ((0,), "use repetition_penalty, which multiplies"),
    "suffix": (("",), "put it into the prompt"),
}
"""Unsupported options: the values that change nothing, and what to do instead of other values."""
_IGNORED = (
    "metadata", "prediction", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "safety_identifier",
    "service_tier", "store", "user", "verbosity",
)  # fmt: skip
"""Options that do not affect the answers of these models."""


def _valid_unicode(text: str) -> str:
    if (at := half_pair_at(text)) is not None:
        raise ValueError(f"it has half a surrogate pair at character {at}; send valid Unicode")
    return text


Text = Annotated[str, AfterValidator(_valid_unicode)]
Words = Annotated[Text, Field(pattern=r"\S")]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Document(_Checked):
    """A text to answer from: one chunk."""

    text: Words
    title: Text = ""
    id: Annotated[Text, Field(min_length=1, max_length=512)] | None = None


def _as_document(given: object) -> object:
    return {"text": given} if isinstance(given, str) else given


GivenDocument = Annotated[Document, BeforeValidator(_as_document, json_schema_input_type=Words | Document)]
"""A document, or only its text."""


class TextPart(_Checked):
    """A part of a message. Clients add ids and marks of their own."""

    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: Text


def _small(given: T) -> T:
    """Refuse schemas that would take long to compile; llguidance's own limits allow some of them."""
    num_values, multiple = 0, 1.0
    for depth, level in enumerate(_levels(_plain(given)), 1):
        num_values += len(level)
        if depth > _MAX_DEPTH or num_values > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_DEPTH} levels or {_MAX_VALUES} values; send a smaller schema")
        for one in (one["multipleOf"] for one in level if isinstance(one, dict) and "multipleOf" in one):
            multiple *= max(1.0, one, 1 / one) if isinstance(one, (int, float)) and 1e-9 < one < 1e9 else 1
        if multiple > _MAX_MULTIPLE:
            raise ValueError(f"multipleOf, all of them multiplied, is above {_MAX_MULTIPLE}; send smaller values")
    return given


def _levels(value: Any) -> Iterator[list[Any]]:
    """Yield the values at each depth of a JSON value."""
    level = [value]
    while level:
        yield level
        children = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = [child for some in children for child in some]


def _plain(given: Any) -> Any:
    return [one.model_dump() for one in given] if isinstance(given, list) else given


class CalledFunction(_Checked):
    """A function and its arguments, as a model called it."""

    name: Text
    arguments: Text

    @property
    def for_template(self) -> dict[str, Any]:
        """The call for chat templates, with its arguments as a mapping if possible, otherwise as text."""
        try:
            arguments = json.loads(self.arguments)
        except (ValueError, RecursionError):
            arguments = None
        is_usual = isinstance(arguments, dict) and sum(1 for _ in _levels(arguments)) <= _MAX_DEPTH
        return {"name": self.name, "arguments": arguments if is_usual else self.arguments}


class MadeCall(_Checked):
    """A tool call in an earlier answer."""

    model_config = ConfigDict(extra="allow")
    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Checked):
    """A message of a conversation. The other fields of OpenAI's answers may be sent back."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: Text | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    @property
    def for_template(self) -> dict[str, Any]:
        """The message for chat templates."""
        message: dict[str, Any] = {"role": template_role(self.role), "content": self.text}
        given = {"tool_call_id": self.tool_call_id, "name": self.name if self.role == "tool" else None}
        message |= {name: value for name, value in given.items() if value is not None}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.for_template} for call in self.tool_calls
            ]
        return message

    @model_validator(mode="after")
    def _is_text(self) -> Message:
        extra = self.model_extra or {}
        _refuse_unsupported({name: value for name, value in extra.items() if name in _UNSUPPORTED}, ())
        return self


class Function(_Checked):
    """A tool's description and arguments."""

    name: Annotated[Text, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="no effect: the arguments of a required call always fit")


class Tool(_Checked):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class ChosenFunction(_Checked):
    """The name of a function."""

    name: Text


class ToolChoice(_Checked):
    """The tool that the model must call."""

    type: Literal["function"] = "function"
    function: ChosenFunction


class NamedSchema(_Checked):
    """The schema of an answer."""

    name: Text
    description: Text | None = None
    schema_: Annotated[dict[str, Any], AfterValidator(_small)] = Field({}, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Checked):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type 'json_schema', and only with it")
        return self

    @property
    def schema_of_json(self) -> dict[str, Any] | None:
        """The schema of the answer; None if it may be any text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class StreamOptions(_Checked):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class AnswerRequest(_Checked):
    """The fields that both endpoints have."""

    model_config = ConfigDict(extra="allow")
    model: Text
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0, the default: likeliest token")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = Field(None, description="0 and -1: all tokens")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="answers from one prefill, decoded together")
    response_format: ResponseFormat | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    documents: Annotated[list[GivenDocument], Field(max_length=MAX_DOCUMENTS)] = Field(
        [], description="what to answer from; those that no message contains are put before the question"
    )
    samkv: Text | dict[str, Any] | None = Field(
        None, description="name of a method, or its options; without a name, options of the server's method"
    )
    explain: bool | Literal["html"] = Field(False, description="return what was read, as data or as HTML")

    @model_validator(mode="after")
    def _has_no_other_options(self) -> AnswerRequest:
        extra = {name: value for name, value in (self.model_extra or {}).items() if name not in _IGNORED}
        _refuse_unsupported(extra, type(self).model_fields)
        return self

    @property
    def json_schema(self) -> dict[str, Any] | None:
        """The schema of the answer; None if it may be any text."""
        return None if self.response_format is None else self.response_format.schema_of_json

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling options for the engine."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed", "n")
        given = {name: getattr(self, name) for name in names} | self.logprobs_asked
        given["max_new_tokens"] = self.num_tokens or DEFAULT_MAX_TOKENS
        given["top_k"] = max(self.top_k or 0, 0)
        if self.temperature is not None and self.temperature < MIN_TEMPERATURE:
            given["temperature"] = 0  # such as 1e-8, by which some clients ask for the likeliest token
        return {name: value for name, value in given.items() if value is not None}

    @property
    def logprobs_asked(self) -> dict[str, Any]:
        """Log-probability options for the engine."""
        raise NotImplementedError

    @property
    def num_tokens(self) -> int | None:
        """The requested limit of the answer's tokens."""
        return self.max_tokens


class ChatRequest(AnswerRequest):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_small)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_asked(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs, "top_logprobs": self.top_logprobs}

    @property
    def function_schemas(self) -> list[dict[str, Any]]:
        """The tools that may be called, for chat templates."""
        return [] if self.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in self.tools or ()]

    @property
    def must_call(self) -> str | None:
        """The tool that must be called: its name, ``"any"``, or None if the model may choose."""
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, ToolChoice) else self.tool_choice
        names = [tool["function"]["name"] for tool in self.function_schemas]
        return None if choice == "none" else chosen_tool(choice, names)

    @model_validator(mode="after")
    def _has_the_tools_it_wants(self) -> ChatRequest:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ApiError(400, "two tools have the same name; give each its own", param="tools")
        if not names and self.tool_choice not in (None, "none", "auto"):
            raise ApiError(400, "a tool must be called, but there are no tools; send them", param="tools")
        return self


class CompletionRequest(AnswerRequest):
    """Body of ``/v1/completions``."""

    prompt: Words | Annotated[list[Words], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _has_one_prompt(self) -> CompletionRequest:
        if isinstance(self.prompt, list) and len(self.prompt) > 1:
            message = f"prompt has {len(self.prompt)} texts; send one a request (LangChain: OpenAI(batch_size=1))"
            raise ApiError(400, message, param="prompt")
        return self

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def logprobs_asked(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs is not None, "top_logprobs": self.logprobs}


class IngestRequest(_Checked):
    """Body of ``POST /v1/samkv/documents``."""

    documents: Annotated[list[GivenDocument], Field(min_length=1, max_length=MAX_DOCUMENTS)]

    @model_validator(mode="after")
    def _ids_differ(self) -> IngestRequest:
        ids = [one.id for one in self.documents if one.id is not None]
        if twice := next((one for one in ids if ids.count(one) > 1), None):
            raise ValueError(f"two documents have the id {reprlib.repr(twice)}; give each its own")
        return self


def _refuse_unsupported(options: Mapping[str, Any], known: Collection[str]) -> None:
    for name, value in options.items():
        if value is None:
            continue
        near = get_close_matches(name[:100], known, n=1)
        guess = f"did you mean {near[0]}?" if near else "leave it out"
        neutral, remedy = _UNSUPPORTED.get(name, ((), f"there is no such option; {guess}"))
        if not any(value == one for one in neutral):
            message = f"{reprlib.repr(name)[1:-1]} is {reprlib.repr(value)}: {remedy}"
            raise ApiError(400, message, param=name[:100], code="unsupported_parameter")
