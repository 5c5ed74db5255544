"""Shared code of the integrations: the lazy engine, options, roles, messages as prompts."""

from __future__ import annotations

import copy
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel, Field, SecretStr
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.exceptions import ChatTemplateError, ConfigurationError, ToolsUnsupportedError
from samkv_rag.frameworks.handle import EngineHandle, resolve_handle
from samkv_rag.frameworks.messages import join_adjacent, render, template_role
from samkv_rag.frameworks.options import CallOptions, EngineOptions, call_options, plain_refusals
from samkv_rag.frameworks.ranking import best_of
from samkv_rag.prefill import Epic, Scout
from samkv_rag.store.unreachable import MASK

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class Options(EngineOptions, CallOptions):
    """The options of an LLM."""


def said(*messages: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


class TestHandle:
    def test_loads_once_whoever_asks_and_again_after_a_failure(self) -> None:
        engine: Any = object()
        results = iter([ConfigurationError("no model"), engine])

        def load() -> Any:
            time.sleep(0.02)
            if isinstance(result := next(results), Exception):
                raise result
            return result

        handle = EngineHandle(load)
        with pytest.raises(ConfigurationError, match="no model"):
            handle.get()
        assert handle.loaded is None
        with ThreadPoolExecutor(4) as pool:
            assert {one.result() for one in [pool.submit(handle.get) for _ in range(4)]} == {engine}

    def test_is_shared_by_deep_copies_and_never_pickled(self) -> None:
        handle = EngineHandle.of(object())  # type: ignore[arg-type]
        assert copy.deepcopy([handle])[0] is handle and handle.loaded is handle.get()
        with pytest.raises(TypeError, match="stays in its process"):
            pickle.dumps(handle)

    def test_is_taken_from_an_llm_or_made_of_an_engine_and_nothing_else(self) -> None:
        engine: Any = object()
        handle = EngineHandle.of(engine)
        assert resolve_handle(SimpleNamespace(engine_handle=handle), None, "ChatSamKV") is handle
        assert resolve_handle(None, engine, "ChatSamKV").get() is engine
        for llm, given in ((None, None), (object(), engine)):
            with pytest.raises(ConfigurationError, match=r"exactly one of llm=ChatSamKV\(\.\.\.\) and engine="):
                resolve_handle(llm, given, "ChatSamKV")
        with pytest.raises(ConfigurationError, match="llm is a str; it must be a ChatSamKV"):
            resolve_handle("gpt", None, "ChatSamKV")


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "given", "made", "written"),
        [
            ("config", {"block_tokens": 8}, EngineConfig(block_tokens=8), asdict(EngineConfig(block_tokens=8))),
            ("store", Path("kv"), "kv", "kv"),
            ("store", "redis://user:word@host/2", "redis://user:word@host/2", f"redis://{MASK}@host/2"),
            ("dtype", torch.bfloat16, "bfloat16", "bfloat16"),
            ("token", "hidden", SecretStr("hidden"), MASK),
            ("store_secret", SecretStr("hidden"), SecretStr("hidden"), MASK),
            ("stop", "END", ["END"], ["END"]),
            ("method", "epic", Epic(), Epic().to_dict()),
            ("method", {"name": "scout", "sequence_ratio": 0.3}, Scout(sequence_ratio=0.3), None),
        ],
    )
    def test_plain_values_become_the_engines_and_are_written_out_as_such(
        self, name: str, given: Any, made: Any, written: Any
    ) -> None:
        llm = Options(**{name: given})
        assert getattr(llm, name) == made
        again = llm.model_dump(mode="json")[name]
        assert again == json.loads(json.dumps(written or made.to_dict()))
        assert "word" not in repr(llm) and "hidden" not in repr(llm)
        if again == MASK:
            with pytest.raises(ConfigurationError, match=f"{name} is masked"):
                Options(**{name: again})

    @pytest.mark.parametrize(
        ("name", "bad", "words"),
        [
            ("config", {"block_size": 3}, "unknown option block_size"),
            ("method", "magic", "^method is "),
            ("max_tokens", "many", "^max_tokens is "),
            ("temperature", -1, "^temperature is "),
            ("top_p", 2.0, "^top_p is "),
            ("store_secret", "", "store_secret is empty"),
            ("store_secret", b"hidden", "store_secret is a bytes"),
            ("token", ["hidden"], "token is a list"),
        ],
    )
    def test_what_is_unknown_or_out_of_range_is_refused_by_name(self, name: str, bad: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as refused, plain_refusals():
            Options(**{name: bad})
        assert "hidden" not in str(refused.value)

    def test_a_quantisation_is_written_out_so_that_it_is_read_again(self) -> None:
        given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=5.0)
        written = Options(model_kwargs={"quantization_config": given, "variant": "a"}).model_dump_json()
        read = json.loads(written)["model_kwargs"]
        assert AutoQuantizationConfig.from_dict(read["quantization_config"]).to_dict() == given.to_dict()
        assert read["variant"] == "a"

    def test_a_call_changes_the_llms_own_and_none_does_not(self) -> None:
        own = {"max_tokens": 9, "temperature": 0.0, "stop": ["END"]}
        plain = {"max_new_tokens": 9, "temperature": 0.0, "stop": ["END"]}
        assert call_options(own, {"temperature": None}) == plain
        assert call_options(own, {"max_tokens": 3, "method": "epic"}) == plain | {"max_new_tokens": 3, "method": "epic"}
        assert call_options(own, {"max_new_tokens": 4, "stop": []}) == plain | {"max_new_tokens": 4, "stop": []}
        with pytest.raises(ConfigurationError, match="same option"):
            call_options(own, {"max_tokens": 1, "max_new_tokens": 2})

    def test_a_refusal_names_every_problem_but_mere_consequences(self) -> None:
        class Made(BaseModel):
            model: str
            top_p: float = Field(le=1)
            of: str = Field(default_factory=lambda made: str(made["model"]))

        with pytest.raises(ConfigurationError, match=r"^model is missing; top_p is 2: [^;]*$"), plain_refusals():
            Made.model_validate({"top_p": 2})


class TestMessages:
    def test_roles_go_by_the_templates_names(self) -> None:
        names = ["human", "ai", "model", "developer", "function", "user", "critic"]
        assert [*map(template_role, names)] == ["user", "assistant", "assistant", "system", "tool", "user", "critic"]

    def test_tool_calls_and_results_stay_apart(self) -> None:
        call = {"role": "assistant", "content": "", "tool_calls": [{}]}
        messages = [*said(("assistant", "a")), call, call, *said(("tool", "1"), ("tool", "2"))]
        assert join_adjacent(messages) == messages

    def test_tools_go_to_a_template_that_takes_them(
        self, tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiny_engine.tokenizer.tokenizer, "name_or_path", "/secret/place/model-1b")
        with pytest.raises(ToolsUnsupportedError, match=r"of model-1b takes no tools, 1 given; take a model made for"):
            render(tiny_engine, said(("user", "Hi")), [TOOL])
        template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0]['content'] }}"
        monkeypatch.setattr(tiny_engine.tokenizer.tokenizer, "chat_template", template)
        assert '"name": "add"' in render(tiny_engine, said(("user", "Hi")), [TOOL]).text

    def test_the_first_refusal_is_the_one_reported(
        self, tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        template = "{{ raise_exception(messages | length | string + ' refused') }}"
        monkeypatch.setattr(tiny_engine.tokenizer.tokenizer, "chat_template", template)
        with pytest.raises(ChatTemplateError, match="2 refused"):
            render(tiny_engine, said(("user", "Hi"), ("user", "again")))


def test_a_retrievers_order_and_the_engines_are_worth_the_same() -> None:
    assert best_of("abcd", [0.0, 1.0, 9.0, 0.5], 2) == [("c", 1 / 63 + 1 / 61), ("b", 1 / 62 + 1 / 62)]
    assert [one for one, _ in best_of("ab", [0.0, 1.0], None)] == ["a", "b"], "where both are level, the retriever's"
    assert best_of("", [], 3) == []
