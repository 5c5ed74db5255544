"""LangChain's standard unit tests of chat models; no model is loaded."""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_tests.unit_tests import ChatModelUnitTests

from langchain_samkv import ChatSamKV


class TestChatSamKV(ChatModelUnitTests):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSamKV

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "some/model"}

    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        # A local model refuses the options of a remote service: timeout, max_retries, api_key.
        return {"temperature": 0, "max_tokens": 100, "stop": []}
