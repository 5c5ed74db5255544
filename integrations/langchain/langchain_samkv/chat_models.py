"""The chat model: LangChain's calls on a SamKV engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from langchain_samkv._messages import engine_messages
from langchain_samkv._responses import message_chunks
from langchain_samkv._structured import METHODS, parsed, parsed_call
from samkv_rag.checks import refuse_unknown
from samkv_rag.config import EngineConfig
from samkv_rag.exceptions import ChatTemplateError, ConfigurationError
from samkv_rag.frameworks.calls import engine_options, open_stream
from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.options import (
    ENGINE_OPTIONS,
    OWN_CALL_OPTIONS,
    CallOptions,
    EngineOptions,
    PathText,
    load_engine,
    method_as_dict,
    parse_bool,
    plain_refusals,
)
from samkv_rag.frameworks.threads import aiter_in_thread
from samkv_rag.frameworks.tools import chosen_tool, names_of
from samkv_rag.store.unreachable import without_secrets

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine

_OF_THE_ENGINE = ("model_name", *ENGINE_OPTIONS)
_PER_CALL = (*OWN_CALL_OPTIONS, "explain")


def _handle_for(fields: Mapping[str, Any]) -> EngineHandle:
    """Return a handle that loads the engine a chat model's ``fields`` describe."""
    origin = {name: fields[name] for name in _OF_THE_ENGINE}
    return EngineHandle(partial(load_engine, origin), origin)


class ChatSamKV(EngineOptions, CallOptions, BaseChatModel):
    """A local chat model that answers from the cached KV of the retrieved chunks.

    Give ``model``, or an existing ``engine`` that several components may share. A model is loaded on first use;
    read :attr:`engine` to load it earlier. Copies (``configurable_fields``, ``model_copy``) share the engine.

    Every call, and ``bind``, takes ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``min_p``,
    ``repetition_penalty``, ``stop``, ``seed``, ``logprobs``, ``top_logprobs`` and ``method``, such as
    ``Scout(sequence_ratio=0.3)`` or ``"full_prefill"``; None means the model's own value. ``grammar`` is a
    :class:`samkv_rag.Grammar` that the answer keeps to. ``n`` is the number of answers; only ``generate`` returns all
    of them, other calls return the first.

    ``store_secret``, ``token`` and the password in a store's URL are masked wherever the model is shown or traced.

    Answers carry ``usage_metadata``, in which ``cache_read`` counts the tokens whose KV was reused, and
    ``response_metadata`` with ``model_name``, ``finish_reason``, ``metrics`` and, if asked for, ``logprobs`` in
    OpenAI's form. In a stream, the last chunk carries them. With ``explain``, ``response_metadata`` also has an
    ``explanation`` for :meth:`samkv_rag.Explanation.from_dict`, and ``content`` is a block of text with LangChain's
    citations in its ``annotations``, strongest first. Both contain the chunks' texts, which then reach chat histories
    and traces.

    Raises:
        ConfigurationError: an argument is unknown or out of range.
    """

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    model_name: PathText = Field(alias="model", description="Hub id or local folder of a transformers model.")
    engine_handle: EngineHandle = Field(
        default_factory=_handle_for, exclude=True, repr=False, description="Loads the engine on first use."
    )
    explain: bool = Field(default=False, description="Answers say what was read, and cite it.")
    streaming: bool = Field(default=False, description="invoke also reports tokens to callbacks one by one.")

    def __init__(self, *, engine: SamKVEngine | None = None, **options: Any) -> None:
        fields = type(self).model_fields
        known = {*fields, *(field.alias for field in fields.values() if field.alias)}
        if engine is not None:
            known -= {"model", *_OF_THE_ENGINE, "engine_handle"}
        refuse_unknown(options, known)
        if engine is not None:
            options |= {"model_name": engine.model_name, "config": engine.config, "namespace": engine.namespace}
            options.setdefault("method", engine.method)
        with plain_refusals():
            super().__init__(**options)
        if engine is not None:
            self.engine_handle = EngineHandle.of(engine, self.engine_handle.origin)

    @field_validator("engine_handle")
    @classmethod
    def _same_engine(cls, handle: EngineHandle, info: ValidationInfo) -> EngineHandle:
        """Keep the engine of the model that was copied, unless the copy describes another engine."""
        fresh = _handle_for(info.data)
        return handle if handle.origin == fresh.origin else fresh

    @property
    def engine(self) -> SamKVEngine:
        """The engine, loaded on first use."""
        return self.engine_handle.get()

    # LangChain's four calls

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

    def _should_stream(
        self,
        *,
        async_api: bool,
        run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> bool:
        one_answer = kwargs.get("n") in (None, 1)  # a stream has no more
        return one_answer and super()._should_stream(async_api=async_api, run_manager=run_manager, **kwargs)

    def _chunks(
        self, messages: Sequence[BaseMessage], given: Mapping[str, Any]
    ) -> Generator[tuple[int, AIMessageChunk], None, None]:
        """Yield the answers chunk by chunk, each with the answer's number; closing ends the generation.

        The model is loaded and the prompt is built on the first read, in the reader's thread.
        """
        options = engine_options(self, given, ignored="stream")  # which the called method decides
        explain, engine = parse_bool("explain", given.get("explain"), self.explain), self.engine
        if not engine.has_chat_template:
            raise ChatTemplateError(f"{engine.model_name} has no chat template; take an instruction-tuned model")
        stream, reader = open_stream(engine, engine_messages(messages), given, options)
        with closing(stream):
            yield from message_chunks(stream, engine.model_name, reader, explain)

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

        ``tool_choice`` is ``"auto"``, ``"any"`` or the name of a tool. With ``"any"`` or a name, only calls whose
        arguments fit the schema can be decoded; with ``parallel_tool_calls=False``, only one. ``strict`` is passed on
        in the tools' schemas.

        Raises:
            ToolsUnsupportedError: the model's chat template takes no tools. If the model is not loaded yet, its first
                call raises instead.
            ConfigurationError: ``tool_choice`` names no tool, or a tool is not a function.
        """
        schemas = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        choice = chosen_tool(tool_choice, names_of(schemas))
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
        """Return the model with answers that fit ``schema``.

        ``"json_schema"`` and ``"json_mode"`` put the schema into the prompt; ``"function_calling"`` makes the model
        call a tool, for templates that take tools. All three keep to the schema while decoding, so ``strict`` changes
        nothing. An answer that ``max_tokens`` cuts off raises LangChain's OutputParserException.

        Raises:
            ConfigurationError: an unknown method or option.
        """
        refuse_unknown(kwargs, ())
        if method not in METHODS:
            raise ConfigurationError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
        asked = {"kwargs": {"method": method}, "schema": schema}
        if method == "function_calling":
            llm = self.bind_tools([schema], tool_choice="any", ls_structured_output_format=asked)
            return parsed_call(llm, schema, include_raw)
        llm = self.bind(json_schema=convert_to_json_schema(schema), ls_structured_output_format=asked)
        return parsed(llm, schema, include_raw)

    # Tokens and identity

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own token ids of ``text``."""
        return self.engine.tokenize(text)

    @property
    def _llm_type(self) -> str:
        return "samkv"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that an answer depends on; LangChain's answer caches use it as their key."""
        # Answers do not depend on secrets. LangChain overwrites "stop" with that of the call.
        names = [name for name in (*_OF_THE_ENGINE, *_PER_CALL) if name not in ("store_secret", "token")]
        own = {"default_stop" if name == "stop" else name: getattr(self, name) for name in names}
        plain = {"store": without_secrets(self.store), "config": asdict(self.config or EngineConfig())}
        given = self.engine_handle.given
        weights = {"fingerprint": given.fingerprint} if given else {}  # its model is not among the fields
        return own | plain | weights | {"method": method_as_dict(self.method)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return super()._get_ls_params(stop=stop or self.stop, **kwargs)


def _result(chunks: Iterable[tuple[int, AIMessageChunk]]) -> ChatResult:
    """Join the chunks of each answer."""
    answers: dict[int, list[ChatGenerationChunk]] = {}
    for index, chunk in chunks:
        answers.setdefault(index, []).append(ChatGenerationChunk(message=chunk))
    wholes = [generate_from_stream(iter(answers[index])) for index in sorted(answers)]
    return ChatResult(generations=[generation for whole in wholes for generation in whole.generations])
