"""The chat model: LangChain's calls, on a SamKV engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from langchain_samkv._engine import ENGINE_FIELDS, handle_for, identity_of
from langchain_samkv._request import Request
from langchain_samkv._structured import METHODS, parsed
from samkv_rag.checks import refuse_unknown
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.options import (
    OWN_CALL_OPTIONS,
    as_config,
    as_dtype_name,
    as_method,
    as_path_text,
    as_plain,
    as_secret,
    as_texts,
    config_error,
    method_as_dict,
)
from samkv_rag.frameworks.streams import aiter_in_thread
from samkv_rag.frameworks.tools import chosen_tool
from samkv_rag.store.unreachable import without_secrets

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine

_PER_CALL = (*OWN_CALL_OPTIONS, "explain")


class ChatSamKV(BaseChatModel):
    """A local chat model that answers from the cached KV of the retrieved chunks.

    Give ``model`` or an existing ``engine``, which several components may share. A model is loaded on
    first use; touch :attr:`engine` to load it at a time of your choosing. Copies (``configurable_fields``,
    ``model_copy``) share its engine.

    Every call, and ``bind``, takes ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``min_p``,
    ``repetition_penalty``, ``stop``, ``seed``, ``logprobs``, ``top_logprobs`` and ``method``, such as
    ``Scout(sequence_ratio=0.3)`` or ``"full_prefill"``; None means the model's own. ``grammar`` is a
    :class:`samkv_rag.Grammar` that the answer keeps to, ``n`` the number of answers: of ``generate``, since
    streams, and what returns one message, have the first.

    ``store_secret``, ``token`` and the password in a store's URL are masked wherever the model is shown or traced.

    Answers carry ``usage_metadata``, in which ``cache_read`` counts the tokens whose KV was reused, and
    ``response_metadata`` with ``model_name``, ``finish_reason``, ``metrics`` and, where asked for, ``logprobs``
    in OpenAI's form; in a stream, the last chunk.
    With ``explain`` there is an ``explanation`` too, for :meth:`samkv_rag.Explanation.from_dict`; and ``content`` is a
    block of text with LangChain's citations among its ``annotations``, strongest first. Both hold the chunks' texts,
    which then reach chat histories and traces.

    Raises:
        ConfigurationError: an argument is unknown or out of range.
    """

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    model_name: Annotated[str, BeforeValidator(as_path_text)] = Field(
        alias="model", description="Hub id or local folder of a transformers model."
    )
    store: Annotated[str, BeforeValidator(as_path_text), PlainSerializer(without_secrets)] = Field(
        default=":memory:", description="Where chunk KV is kept: ':memory:', a folder or a URL."
    )
    config: Annotated[EngineConfig | None, BeforeValidator(as_config)] = Field(
        default=None, description="What is fixed at ingestion, or a dict of its options."
    )
    device: str | None = Field(default=None, description="Device of the model; None picks one.")
    dtype: Annotated[str | None, BeforeValidator(as_dtype_name)] = Field(
        default=None, description="Data type of the model, for example 'bfloat16'."
    )
    gguf_file: str | None = Field(default=None, description="GGUF file inside the model's folder.")
    device_map: dict[str, int | str] | int | str | None = Field(default=None, description="Another word for device.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of the model on the hub.")
    token: Annotated[SecretStr | None, BeforeValidator(partial(as_secret, name="token"))] = Field(
        default=None, description="Token of the hub; None takes the one logged in with."
    )
    attn_implementation: str | None = Field(default=None, description="Attention that the model must come with.")
    model_kwargs: Annotated[dict[str, Any] | None, BeforeValidator(as_plain)] = Field(
        default=None, description="What else transformers takes, such as quantization_config."
    )
    namespace: str = Field(default="", description="Tenant whose chunks these are; no other gets them.")
    store_secret: Annotated[SecretStr | None, BeforeValidator(as_secret)] = Field(
        default=None, description="Makes the store's keys unknowable without it."
    )
    engine_handle: EngineHandle = Field(
        default_factory=handle_for, exclude=True, repr=False, description="The engine, or the promise of one."
    )

    method: Annotated[Any, BeforeValidator(as_method), PlainSerializer(method_as_dict)] = Field(
        default=None, description="How prompts are answered: a method, its name, or a dict with name and options."
    )
    max_tokens: int = Field(default=256, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(default=0.0, ge=0.0, description="0 always takes the likeliest token.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Sample from the likeliest tokens of this mass.")
    top_k: int = Field(default=0, ge=0, description="Sample from so many of the likeliest tokens; 0: from all.")
    min_p: float = Field(default=0.0, ge=0.0, le=1.0, description="Least share of the likeliest token's probability.")
    repetition_penalty: float = Field(default=1.0, gt=0.0, description="Above 1 makes what was said less likely.")
    stop: Annotated[list[str] | None, BeforeValidator(as_texts)] = Field(
        default=None, description="Texts that end an answer and are not part of it."
    )
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    logprobs: bool = Field(default=False, description="Answers say how likely each token was.")
    top_logprobs: int = Field(default=0, ge=0, le=20, description="How many of the likeliest tokens they name beside.")
    explain: bool = Field(default=False, description="Answers say what was read, and cite it.")
    streaming: bool = Field(default=False, description="Also invoke reports token by token to callbacks.")

    def __init__(self, *, engine: SamKVEngine | None = None, **options: Any) -> None:
        fields = type(self).model_fields
        known = {*fields, *(field.alias for field in fields.values() if field.alias)}
        if engine is not None:
            known -= {*ENGINE_FIELDS, "model", "engine_handle"}
        refuse_unknown(options, known)
        if engine is not None:
            options |= {"model_name": engine.model_name, "config": engine.config, "namespace": engine.namespace}
            options.setdefault("method", engine.method)
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise config_error(error.errors()) from error
        if engine is not None:
            self.engine_handle = EngineHandle.of(engine, self.engine_handle.origin)

    @field_validator("engine_handle")
    @classmethod
    def _same_engine(cls, handle: EngineHandle, info: ValidationInfo) -> EngineHandle:
        """Take over the engine of the model this is a copy of, unless the copy is of another model."""
        fresh = handle_for(info.data)
        return handle if handle.origin == fresh.origin else fresh

    @property
    def engine(self) -> SamKVEngine:
        """The engine, loaded on first use."""
        return self.engine_handle.get()

    # The four calls

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self._chunks(messages, {"stop": stop, **kwargs}))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with closing(self._chunks(messages, {"stop": stop, **kwargs})) as chunks:
            for chunk in (chunk for index, chunk in chunks if index == 0):
                generation = ChatGenerationChunk(message=chunk)
                if run_manager is not None:
                    run_manager.on_llm_new_token(generation.text, chunk=generation)
                yield generation

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        async with aclosing(aiter_in_thread(self._chunks(messages, {"stop": stop, **kwargs}))) as chunks:
            return _result([chunk async for chunk in chunks])

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(aiter_in_thread(self._chunks(messages, {"stop": stop, **kwargs}))) as chunks:
            async for index, chunk in chunks:
                if index > 0:
                    continue
                generation = ChatGenerationChunk(message=chunk)
                if run_manager is not None:
                    await run_manager.on_llm_new_token(generation.text, chunk=generation)
                yield generation

    def _chunks(
        self, messages: Sequence[BaseMessage], given: Mapping[str, Any]
    ) -> Generator[tuple[int, AIMessageChunk], None, None]:
        """Yield the answers; the model is loaded and the prompt built with the first chunk, in the reader's thread."""
        own = {name: getattr(self, name) for name in _PER_CALL}
        yield from Request.of_call(own, given).answer(self.engine, messages)

    # Tools and structured answers

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools that it may call.

        ``tool_choice`` is ``"auto"``, ``"any"`` or the name of the tool that must be called: then nothing but calls
        with arguments that fit can be decoded, one alone where ``parallel_tool_calls=False``. ``strict`` is passed on
        in the tools' schemas.

        Raises:
            ToolsUnsupportedError: the model's chat template takes no tools; where the model is not loaded
                yet, its first call raises.
            ConfigurationError: ``tool_choice`` names no tool.
        """
        schemas = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        choice = chosen_tool(tool_choice, [schema["function"]["name"] for schema in schemas])
        if (engine := self.engine_handle.loaded) is not None:
            engine.apply_chat_template([{"role": "user", "content": "?"}], tools=schemas)
        return self.bind(tools=schemas, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return the model with answers that fit ``schema``, or raise langchain's OutputParserException.

        ``"json_schema"`` and ``"json_mode"`` put the schema into the prompt; ``"function_calling"`` makes the model
        call a tool, for templates that take tools. All keep to the schema while decoding, so ``strict`` changes
        nothing; one that ``max_tokens`` cuts off does not fit.

        Raises:
            ConfigurationError: an unknown method or option.
        """
        refuse_unknown(kwargs, ())
        if method not in METHODS:
            raise ConfigurationError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw)
        asked = {"kwargs": {"method": method}, "schema": schema}
        llm = self.bind(json_schema=convert_to_json_schema(schema), ls_structured_output_format=asked)
        return parsed(llm, schema, include_raw)

    # What it is

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own token ids of ``text``."""
        return self.engine.tokenize(text)

    @property
    def _llm_type(self) -> str:
        return "samkv"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on: LangChain's caches of answers are keyed by it."""
        # LangChain overwrites "stop" with that of the call.
        own = {"default_stop" if name == "stop" else name: getattr(self, name) for name in _PER_CALL}
        return identity_of(vars(self)) | own | {"method": method_as_dict(self.method)}

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_secrets(value) if name == "store" else value

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=stop or self.stop, **kwargs)


def _result(chunks: Iterable[tuple[int, AIMessageChunk]]) -> ChatResult:
    """The answers, whole."""
    answers: dict[int, list[ChatGenerationChunk]] = {}
    for index, chunk in chunks:
        answers.setdefault(index, []).append(ChatGenerationChunk(message=chunk))
    wholes = [generate_from_stream(iter(answers[index])) for index in sorted(answers)]
    return ChatResult(generations=[generation for whole in wholes for generation in whole.generations])
