"""What integrations share: the lazy engine, options, roles, messages as prompts. Streams: tests/llama_index."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BitsAndBytesConfig
from transformers.quantizers.auto import AutoQuantizationConfig

from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.exceptions import ChatTemplateError, ConfigurationError, ToolsUnsupportedError
from samkv_rag.frameworks.handle import EngineHandle, resolve_handle
from samkv_rag.frameworks.messages import join_same_roles, join_system_messages, render, template_role
from samkv_rag.frameworks.options import (
    as_config,
    as_dtype_name,
    as_method,
    as_path_text,
    as_plain,
    as_texts,
    call_options,
    config_error,
    method_as_dict,
)
from samkv_rag.frameworks.ranking import best_of
from samkv_rag.prefill import Epic, Scout

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def said(*messages: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def test_it_brings_neither_torch_nor_a_framework() -> None:
    modules = "handle", "logprobs", "messages", "options", "streams", "tools"
    imports = "; ".join(f"import samkv_rag.frameworks.{name}" for name in modules)
    heavy = "{'torch', 'transformers', 'numpy', 'llama_index', 'langchain_core'}"
    code = f"import sys; {imports}; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


class TestHandle:
    def test_loads_once_whoever_asks(self) -> None:
        loads: list[object] = []

        def load() -> Any:
            time.sleep(0.02)
            loads.append(engine := object())
            return engine

        handle = EngineHandle(load)
        assert handle.loaded is None
        with ThreadPoolExecutor(4) as pool:
            got = [pool.submit(handle.get) for _ in range(4)]
        assert len(loads) == 1 and {id(one.result()) for one in got} == {id(handle.loaded)}

    def test_a_failed_load_is_tried_again(self) -> None:
        results = iter([ConfigurationError("no model"), "engine"])

        def load() -> Any:
            result = next(results)
            if isinstance(result, Exception):
                raise result
            return result

        handle = EngineHandle(load)
        with pytest.raises(ConfigurationError, match="no model"):
            handle.get()
        assert handle.get() == "engine"  # type: ignore[comparison-overlap]

    def test_is_shared_by_deep_copies_and_never_pickled(self) -> None:
        handle = EngineHandle.of(object())  # type: ignore[arg-type]
        assert copy.deepcopy([handle])[0] is handle and handle.loaded is handle.get()
        with pytest.raises(TypeError, match="stays in its process"):
            pickle.dumps(handle)

    def test_is_taken_from_an_llm_or_made_of_an_engine(self) -> None:
        handle = EngineHandle.of(object())  # type: ignore[arg-type]
        assert resolve_handle(SimpleNamespace(engine_handle=handle), None, "ChatSamKV") is handle
        assert resolve_handle(None, handle.get(), "ChatSamKV").get() is handle.get()

    def test_anything_else_is_refused(self) -> None:
        engine: Any = object()
        for llm, given in ((None, None), (object(), engine)):
            with pytest.raises(
                ConfigurationError, match=r"exactly one of llm=ChatSamKV\(\.\.\.\) and engine=SamKVEngine"
            ):
                resolve_handle(llm, given, "ChatSamKV")
        with pytest.raises(ConfigurationError, match="llm is a str; it must be a ChatSamKV"):
            resolve_handle("gpt", None, "ChatSamKV")


class TestOptions:
    def test_plain_values_become_the_engines(self) -> None:
        assert as_config({"block_tokens": 8}) == EngineConfig(block_tokens=8)
        assert as_method({"name": "scout", "score_layers": [0.25, 1.0]}) == Scout(score_layers=(0.25, 1.0))
        assert as_method("epic") == Epic()
        assert method_as_dict(Epic()) == Epic().to_dict() and method_as_dict(None) is None
        assert (as_config(None), as_texts("END"), as_texts(["END"])) == (None, ["END"], ["END"])
        assert (as_path_text(Path("kv")), as_path_text(":memory:")) == ("kv", ":memory:")
        assert (as_dtype_name("torch.bfloat16"), as_dtype_name(None)) == ("bfloat16", None)

    def test_a_quantisation_is_written_out_so_that_it_is_read_again(self) -> None:
        given = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=5.0)
        written = json.loads(json.dumps(as_plain({"quantization_config": given, "variant": "a"})))
        again = AutoQuantizationConfig.from_dict(written["quantization_config"])
        assert again.to_dict() == given.to_dict()
        assert written["variant"] == "a"
        assert as_plain(None) is None

    def test_a_call_changes_the_llms_own_and_none_does_not(self) -> None:
        own = {"max_tokens": 9, "temperature": 0.0, "stop": ["END"]}
        assert call_options(own, {}) == {"max_new_tokens": 9, "temperature": 0.0, "stop": ["END"]}
        assert call_options(own, {"max_tokens": 3, "temperature": None, "method": "epic"}) == {
            "max_new_tokens": 3,
            "temperature": 0.0,
            "stop": ["END"],
            "method": "epic",
        }
        assert call_options(own, {"max_new_tokens": 4, "stop": []})["max_new_tokens"] == 4

    def test_both_names_of_the_length_limit_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="same option"):
            call_options({}, {"max_tokens": 1, "max_new_tokens": 2})

    def test_a_refusal_names_every_problem_but_mere_consequences(self) -> None:
        problems: list[dict[str, Any]] = [
            {"loc": ("top_p",), "input": 2, "msg": "too large", "type": "less_than_equal"},
            {"loc": ("model",), "input": {}, "msg": "Field required", "type": "missing"},
            {"loc": ("handle",), "input": {}, "msg": "not called", "type": "default_factory_not_called"},
        ]
        assert str(config_error(problems)) == "top_p is 2: too large; model is missing"


class TestMessages:
    def test_roles_go_by_the_templates_names(self) -> None:
        names = ["human", "ai", "model", "developer", "function", "user", "critic"]
        assert [*map(template_role, names)] == ["user", "assistant", "assistant", "system", "tool", "user", "critic"]

    def test_only_neighbours_of_the_wanted_roles_are_joined(self) -> None:
        messages = said(("system", "a"), ("system", "b"), ("user", "c"), ("user", "d"), ("system", "e"))
        assert join_system_messages(messages) == said(
            ("system", "a\n\nb"), ("user", "c"), ("user", "d"), ("system", "e")
        )
        assert join_same_roles(messages) == said(("system", "a\n\nb"), ("user", "c\n\nd"), ("system", "e"))
        assert messages[0] == {"role": "system", "content": "a"}  # the caller's stay as they are

    def test_tool_calls_and_results_stay_apart(self) -> None:
        call = {"role": "assistant", "content": "", "tool_calls": [{}]}
        messages = [*said(("assistant", "a")), call, call, *said(("tool", "1"), ("tool", "2"))]
        assert join_same_roles(messages) == messages

    def test_a_template_without_tools_is_refused_as_such(self, tiny_engine: SamKVEngine) -> None:
        with pytest.raises(ToolsUnsupportedError, match="takes no tools, 1 given; take a model made for tool calls"):
            render(tiny_engine, said(("user", "Hi")), [TOOL])
        assert issubclass(ToolsUnsupportedError, NotImplementedError)

    def test_one_with_tools_gets_them(self, tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        template = "{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0]['content'] }}"
        monkeypatch.setattr(tiny_engine.tokenizer.tokenizer, "chat_template", template)
        assert '"name": "add"' in render(tiny_engine, said(("user", "Hi")), [TOOL]).text
        assert tiny_engine.apply_chat_template(said(("user", "Hi"))).text == "Hi"

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
