"""LangChain's standard tests of chat models, on a tiny random model with scripted tool calls and JSON."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_samkv import ChatSamKV
from support import tiny
from tests.calling import ask
from tests.scripted import scripted_engine


class TestChatSamKV(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSamKV

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": scripted_engine(), "max_tokens": 8}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False  # one object, one model

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chunk, llm = tiny.text(1), ChatSamKV(**self.chat_model_params)
        llm.engine.add_chunks([chunk])
        message = ask(llm, "stream" if stream else "invoke", f"{chunk}\n\nWho keeps the light?")
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_token_details"]["cache_read"] >= llm.get_num_tokens(chunk)
        return message
