"""What may be asked, checked. The OpenAPI document is written from it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from samkv_apps.serve.errors import ApiError

DEFAULT_MAX_TOKENS = 1024
MAX_DOCUMENTS = 1000

_NO_TOOLS = "this server calls no tools; leave it out"
_ONE_ANSWER = "there is one answer to a request; send the request again for another"
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "the model reads and writes text; leave it out"),
    "best_of": ((1,), _ONE_ANSWER),
    "echo": ((False,), "put the prompt before the answer yourself"),
    "frequency_penalty": ((0,), "penalties are not supported; leave it out"),
    "function_call": (("none",), _NO_TOOLS),
    "functions": (([],), _NO_TOOLS),
    "logit_bias": (({},), "tokens cannot be favoured; leave it out"),
    "logprobs": ((False, 0), "log probabilities are not reported; leave it out"),
    "modalities": ((["text"],), "the model reads and writes text; leave it out"),
    "n": ((1,), _ONE_ANSWER),
    "presence_penalty": ((0,), "penalties are not supported; leave it out"),
    "response_format": (({"type": "text"},), "ask for the format in a message, and check the answer"),
    "suffix": (("",), "put it into the prompt"),
    "tool_calls": (([],), _NO_TOOLS),
    "tool_choice": (("auto", "none"), _NO_TOOLS),
    "tools": (([],), _NO_TOOLS),
    "top_k": ((-1, 0), "use top_p, or temperature 0 for the likeliest token"),
    "top_logprobs": ((0,), "log probabilities are not reported; leave it out"),
}
"""Options of OpenAI and others: the values that change nothing, and what to do instead of the rest."""
_IGNORED = (
    "metadata", "parallel_tool_calls", "prompt_cache_key", "reasoning_effort", "safety_identifier", "service_tier",
    "store", "user", "verbosity",
)  # fmt: skip
"""Options that say nothing about what the answer should be, or nothing to models like these."""


def _valid_unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a surrogate pair at character {error.start}; send valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_valid_unicode)]
Words = Annotated[Text, Field(pattern=r"\S")]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Document(_Checked):
    """A text that answers are read from: one chunk."""

    text: Words
    title: Text = ""
    id: Annotated[Text, Field(min_length=1, max_length=512)] | None = None


def _as_document(given: object) -> object:
    return {"text": given} if isinstance(given, str) else given


GivenDocument = Annotated[Document, BeforeValidator(_as_document, json_schema_input_type=Words | Document)]
"""A document, or its text alone."""


class TextPart(_Checked):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(_Checked):
    """A message of a conversation. What OpenAI's answers hold beside role and content may be sent back."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())

    @model_validator(mode="after")
    def _calls_no_tools(self) -> Message:
        extra = self.model_extra or {}
        _refuse_unsupported({name: value for name, value in extra.items() if name in _UNSUPPORTED})
        return self


class StreamOptions(_Checked):
    """How a stream is written."""

    include_usage: bool = False
    include_obfuscation: bool = False


class AnswerRequest(_Checked):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow")
    model: Text
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0, the default: likeliest token")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    documents: Annotated[list[GivenDocument], Field(max_length=MAX_DOCUMENTS)] = Field(
        [], description="what to answer from; put in front of the question where the messages hold none of it"
    )
    samkv: Text | dict[str, Any] | None = Field(
        None, description="method by name, or options of it; without a name those of the server's own method"
    )
    explain: bool | Literal["html"] = Field(False, description="say what was read, as data or as HTML")

    @model_validator(mode="after")
    def _has_no_other_options(self) -> AnswerRequest:
        extra = {name: value for name, value in (self.model_extra or {}).items() if name not in _IGNORED}
        _refuse_unsupported(extra)
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of the engine's call."""
        given = {"temperature": self.temperature, "top_p": self.top_p, "stop": self.stop, "seed": self.seed}
        given["max_new_tokens"] = self.num_tokens or DEFAULT_MAX_TOKENS
        return {name: value for name, value in given.items() if value is not None}

    @property
    def num_tokens(self) -> int | None:
        """Most tokens of the answer, where that was said."""
        return self.max_tokens


class ChatRequest(AnswerRequest):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_DOCUMENTS)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def num_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(AnswerRequest):
    """Body of ``/v1/completions``."""

    prompt: Words | Annotated[list[Words], Field(min_length=1, max_length=1)]

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class IngestRequest(_Checked):
    """Body of ``POST /v1/samkv/documents``."""

    documents: Annotated[list[GivenDocument], Field(min_length=1, max_length=MAX_DOCUMENTS)]

    @model_validator(mode="after")
    def _ids_differ(self) -> IngestRequest:
        ids = [one.id for one in self.documents if one.id is not None]
        if twice := next((one for one in ids if ids.count(one) > 1), None):
            raise ValueError(f"two documents have the id {reprlib.repr(twice)}; give each its own")
        return self


def _refuse_unsupported(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        neutral, remedy = _UNSUPPORTED.get(name, ((), "there is no such option; leave it out"))
        if value is not None and not any(value == one for one in neutral):
            message = f"{reprlib.repr(name)[1:-1]} is {reprlib.repr(value)}: {remedy}"
            raise ApiError(400, message, param=name[:100], code="unsupported_parameter")
