"""The LLM: LlamaIndex's eight ways to call one on a SamKV engine."""

from __future__ import annotations

import reprlib
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, cast

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    ToolCallBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr, SecretStr, field_serializer
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import Model
from llama_index.llms.samkv._citations import cite, uncited
from llama_index.llms.samkv._messages import engine_messages, refuse_non_text
from llama_index.llms.samkv._responses import Answer, growing_answers, last_answer
from llama_index.llms.samkv._structured import answered, as_object, asked_for, growing_objects
from llama_index.llms.samkv._tracing import closing_source, traced

from samkv_rag.checks import refuse_unknown
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.frameworks.calls import engine_options, open_stream
from samkv_rag.frameworks.handle import EngineHandle
from samkv_rag.frameworks.messages import Message
from samkv_rag.frameworks.options import (
    ENGINE_OPTIONS,
    CallOptions,
    EngineOptions,
    PathText,
    load_engine,
    parse_bool,
    plain_refusals,
)
from samkv_rag.frameworks.threads import aiter_in_thread
from samkv_rag.results import GenerationMetrics

if TYPE_CHECKING:
    from samkv_rag import Explanation, GenerationResult, SamKVEngine

_Prompt = str | list[Message]
_Response = TypeVar("_Response", CompletionResponse, ChatResponse)
_Item = TypeVar("_Item")


class SamKVLLM(EngineOptions, CallOptions, CustomLLM, FunctionCallingLLM):
    """A local LLM that answers from the cached KV of the retrieved chunks.

    The model is loaded on first use; read :attr:`engine` to load it earlier. Set
    ``Settings.tokenizer = llm.tokenizer``, or LlamaIndex counts tokens with another model's tokenizer.

    ``system_prompt`` is put before query-engine prompts and ``complete`` calls; ``chat`` sends the messages
    unchanged, as other LlamaIndex LLMs do. Messages and plain completions go through the model's chat template,
    unless ``messages_to_prompt`` or ``completion_to_prompt`` is given. ``complete(prompt, formatted=True)`` uses the
    string verbatim.

    Every call takes ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``min_p``, ``repetition_penalty``,
    ``stop``, ``seed``, ``logprobs``, ``top_logprobs`` and ``method``, such as ``Scout(sequence_ratio=0.3)`` or
    ``"full_prefill"``; None means the LLM's own value. ``grammar`` is a :class:`samkv_rag.Grammar` that the answer
    keeps to. ``n`` is the number of answers; ``raw["others"]`` has the texts of all but the first.

    ``store_secret``, ``token`` and the password in a store's URL are masked wherever the LLM is shown or written out.
    A masked secret is refused, so give it again: ``SamKVLLM.from_json(text, store_secret=secret)``.

    Responses carry ``raw={"usage": ..., "finish_reason": ..., "metrics": ...}``; in a stream, the last one does. With
    ``explain``, ``raw`` also has an ``"explanation"`` for :meth:`samkv_rag.Explanation.from_dict`. It contains the
    chunks' texts, which then reach anything that logs responses. With a :class:`SamKVPostprocessor`, a query's
    ``source_nodes`` say in ``metadata["samkv_spans"]`` which parts of them were read.

    Raises:
        ConfigurationError: an argument is unknown or out of range.
    """

    model: PathText = Field(description="Hub id or local folder of a transformers model.")
    explain: bool = Field(default=False, description="Responses, and their source nodes, say what was read.")
    on_metrics: Callable[[GenerationMetrics], None] | None = Field(
        default=None,
        exclude=True,
        description="Called with the metrics of every finished generation, in the thread that ran it.",
    )

    _handle: EngineHandle = PrivateAttr()
    _last_result: GenerationResult | None = PrivateAttr(default=None)

    def __init__(
        self, model: str | PathLike[str] | None = None, *, model_name: str | None = None, **options: Any
    ) -> None:
        refuse_unknown(options, type(self).model_fields)
        if (model is None) == (model_name is None):
            raise ConfigurationError("give exactly one of model (a folder or hub id) and model_name, its other name")
        model = model_name if model is None else model
        with plain_refusals():
            super().__init__(model=model, **options)
        self._handle = EngineHandle(self._load_engine)

    @classmethod
    def from_engine(cls, engine: SamKVEngine, **options: Any) -> SamKVLLM:
        """Return an LLM on an existing engine, which several components may share.

        Args:
            engine: the engine, with its model, store and configuration.
            options: the other fields of this class.

        Raises:
            ConfigurationError: an option is unknown, out of range, or belongs to the engine.
        """
        refuse_unknown(options, [name for name in cls.model_fields if name not in ("model", *ENGINE_OPTIONS)])
        options.setdefault("method", engine.method)
        llm = cls(engine.model_name, config=engine.config, namespace=engine.namespace, **options)
        llm._handle = EngineHandle.of(engine)
        return llm

    @field_serializer("store_secret", "token")
    def _masked(self, secret: SecretStr | None) -> str | None:
        return None if secret is None else str(secret)

    @classmethod
    def class_name(cls) -> str:
        return "SamKVLLM"

    @property
    def engine(self) -> SamKVEngine:
        """The engine, loaded on first use."""
        return self._handle.get()

    @property
    def engine_handle(self) -> EngineHandle:
        """Loads the engine on first use; the other components of this package take it."""
        return self._handle

    @property
    def tokenizer(self) -> Callable[[str], list[int]]:
        """A function from text to token ids, for ``Settings.tokenizer``."""
        return self.engine.tokenize

    @property
    def metadata(self) -> LLMMetadata:
        """The model's real context window and name; LlamaIndex fits prompts into the window."""
        return LLMMetadata(
            context_window=self.engine.context_window,
            num_output=self.max_tokens,
            is_chat_model=self.engine.has_chat_template,
            is_function_calling_model=self.engine.takes_tools,
            model_name=self.engine.model_name,
        )

    @property
    def last_metrics(self) -> GenerationMetrics | None:
        """Metrics of the generation that finished last, in any thread.

        With concurrent calls, read ``response.raw["metrics"]`` or set ``on_metrics`` instead.
        """
        return None if self._last_result is None else self._last_result.metrics

    @property
    def last_explanation(self) -> Explanation | None:
        """What the answer that finished last was read from; computed when it is read.

        With concurrent calls, set ``explain`` and read ``response.raw["explanation"]`` instead.
        """
        return None if self._last_result is None else self._last_result.explain()

    # Four calls

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt; ``formatted`` means it needs no chat template."""
        answers = self._answers(self._completion_prompt(prompt, formatted), kwargs)
        return traced(self, prompt, kwargs, lambda: last_answer(answers).as_completion())

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation."""
        answers = self._answers(self._chat_prompt(messages), kwargs)
        return traced(self, messages, kwargs, lambda: last_answer(answers).as_chat())

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Answer a prompt piece by piece; closing the stream ends the generation."""
        answers = self._answers(self._completion_prompt(prompt, formatted), kwargs)
        responses = (answer.as_completion() for answer in answers)
        return closing_source(traced(self, prompt, kwargs, lambda: responses), answers)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a conversation piece by piece; closing the stream ends the generation."""
        answers = self._answers(self._chat_prompt(messages), kwargs)
        responses = (answer.as_chat() for answer in answers)
        return closing_source(traced(self, messages, kwargs, lambda: responses), answers)

    # The same four for event loops

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt in a thread; a cancelled call ends the generation."""
        return await _last(await self.astream_complete(prompt, formatted, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a conversation in a thread; a cancelled call ends the generation."""
        return await _last(await self.astream_chat(messages, **kwargs))

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """Answer a prompt piece by piece, in a thread."""
        self._options(kwargs)  # refuse bad options here, not in the thread
        return aiter_in_thread(_lazily(lambda: self.stream_complete(prompt, formatted, **kwargs)))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Answer a conversation piece by piece, in a thread."""
        self._options(kwargs)
        return aiter_in_thread(_lazily(lambda: self.stream_chat(messages, **kwargs)))

    # Tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of a chat that may call ``tools``, or must if ``tool_required``."""
        said = ChatMessage(role=MessageRole.USER, content=user_msg) if isinstance(user_msg, str) else user_msg
        return {
            "messages": [*(chat_history or ()), *([] if said is None else [said])],
            "tools": [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools],
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
            # LlamaIndex's programs give None.
            "tool_choice": kwargs.get("tool_choice") or ("required" if tool_required else "auto"),
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return the calls of an answer.

        Raises:
            ConfigurationError: there are none and ``error_on_no_tool_call`` is True.
        """
        calls = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            was_cut_off = (response.raw or {}).get("finish_reason") == "length"
            raise ConfigurationError(
                f"the answer calls no tool but says {reprlib.repr(response.message.content)}; "
                f"{'it was cut off, so raise max_tokens, or ' if was_cut_off else ''}pass tool_required=True"
            )
        return [
            ToolSelection(
                tool_id=call.tool_call_id or "",
                tool_name=call.tool_name,
                tool_kwargs=cast(dict[str, Any], call.tool_kwargs),
            )
            for call in calls
        ]

    # Answers as objects

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Return an answer as an object of ``output_cls``; decoding keeps to its schema.

        Raises:
            ConfigurationError: the answer was cut off.
        """
        asked_for(output_cls, prompt, prompt_args)
        messages, options = self._request(output_cls, prompt, llm_kwargs, prompt_args)
        return answered(as_object(self.chat(messages, **options), output_cls))

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As :meth:`structured_predict`, in a thread."""
        asked_for(output_cls, prompt, prompt_args)
        messages, options = self._request(output_cls, prompt, llm_kwargs, prompt_args)
        return answered(as_object(await self.achat(messages, **options), output_cls))

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """Yield the object as it grows; the last one is whole."""
        messages, options = self._request(output_cls, prompt, llm_kwargs, prompt_args)
        return growing_objects(self.stream_chat(messages, **options), output_cls)

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        return aiter_in_thread(
            _lazily(lambda: self._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args))
        )

    def _request(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: Mapping[str, Any] | None,
        prompt_args: Mapping[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """Return messages and options of a call whose answer is an object of ``output_cls``."""
        messages = self._extend_messages(prompt.format_messages(**prompt_args))
        return messages, {**(llm_kwargs or {}), "json_schema": output_cls.model_json_schema()}

    # Prompts and options

    def _completion_prompt(self, prompt: str, formatted: bool) -> _Prompt:
        if formatted:
            return prompt
        if self.engine.has_chat_template and self.completion_to_prompt is default_completion_to_prompt:
            wrap = self.query_wrapper_prompt
            asked = wrap.format(query_str=prompt) if wrap else prompt
            return engine_messages(self._extend_messages([ChatMessage(role=MessageRole.USER, content=asked)]))
        assert self.completion_to_prompt is not None  # set by LLM's validators
        return self._extend_prompt(self.completion_to_prompt(prompt))

    def _chat_prompt(self, messages: Sequence[ChatMessage]) -> _Prompt:
        if self.engine.has_chat_template and self.messages_to_prompt is generic_messages_to_prompt:
            return engine_messages(messages)
        refuse_non_text(messages)
        assert self.messages_to_prompt is not None  # set by LLM's validators
        return self.messages_to_prompt(messages)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return engine_options(self, given, ignored="extra_headers")  # of LlamaIndex's document-context extractor

    # Engine calls

    def _load_engine(self) -> SamKVEngine:
        options = {name: getattr(self, name) for name in (*ENGINE_OPTIONS, "method")}
        return load_engine({"model_name": self.model, **options})

    def _record(self, result: GenerationResult) -> None:
        self._last_result = result
        if self.on_metrics is not None:
            self.on_metrics(result.metrics)

    def _answers(self, prompt: _Prompt, kwargs: Mapping[str, Any]) -> Generator[Answer, None, None]:
        """Return the answer as it grows. Options are checked now; generation starts with the first piece."""
        options, explain = self._options(kwargs), parse_bool("explain", kwargs.get("explain"), self.explain)
        stream, reader = open_stream(self.engine, prompt, kwargs, options)
        nodes = uncited.get([])  # now: the stream may be read in another context
        if not explain:
            uncited.set([])  # or a later answer, to another question, would cite them
        return growing_answers(stream, reader(), self._record, partial(cite, nodes) if explain else None)


def _lazily(call: Callable[[], Generator[_Item, None, None]]) -> Generator[_Item, None, None]:
    """Call ``call`` in the thread that reads the first item, and yield what it returns."""
    yield from call()


async def _last(responses: AsyncGenerator[_Response, None]) -> _Response:
    """Return a stream's last response as the whole answer; the stream is closed if the caller is cancelled."""
    last: Any = None
    async with aclosing(responses):
        async for response in responses:
            last = response
    last.delta = None
    return cast(_Response, last)
