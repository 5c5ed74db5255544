"""ChatSamKV without a model: what it takes and refuses, what identifies it, what its copies share."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

from langchain_samkv import ChatSamKV
from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.exceptions import ConfigurationError


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls of SamKVEngine.from_pretrained, which is replaced."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def load(model: str, **options: Any) -> object:
        seen.append((model, options))
        return object()

    monkeypatch.setattr(SamKVEngine, "from_pretrained", load)
    return seen


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, langchain_samkv; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


class TestArguments:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"model": "a/b", "api_key": "x"}, r"unknown option api_key; known are .*max_tokens"),
            ({"engine": object(), "store": "elsewhere"}, "unknown option store"),
            ({}, "^model is missing$"),
            ({"model": "a/b", "max_tokens": 0}, "^max_tokens is "),
        ],
        ids=lambda value: next(reversed(value), "nothing") if isinstance(value, dict) else "",
    )
    def test_what_is_missing_unknown_or_out_of_range_is_refused_by_name(self, bad: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            ChatSamKV(**bad)

    def test_the_model_goes_by_both_names_and_may_be_a_path(self) -> None:
        assert ChatSamKV(model=Path("a/b")).model_name == ChatSamKV(model_name="a/b").model_name == "a/b"

    def test_an_unknown_method_of_structured_output_is_refused(self) -> None:
        llm = ChatSamKV(model="a/b")
        with pytest.raises(ConfigurationError, match="method is 'grammar'"):
            llm.with_structured_output({"title": "x", "type": "object"}, method="grammar")
        with pytest.raises(ConfigurationError, match="unknown option retries"):
            llm.with_structured_output({"title": "x", "type": "object"}, retries=3)


class TestEngine:
    def test_is_loaded_once_with_every_option(self, loads: list[Any], tmp_path: Path) -> None:
        given = {
            "store": str(tmp_path),
            "config": EngineConfig(block_tokens=8),
            "device": "cpu",
            "dtype": "float32",
            "gguf_file": "a.gguf",
            "device_map": "auto",
            "revision": "v2",
            "token": "hidden",
            "attn_implementation": "sdpa",
            "model_kwargs": {"variant": "fp16"},
            "namespace": "tenant a",
            "store_secret": "hidden too",
        }
        llm = ChatSamKV(model="a/b", method="epic", **given)
        assert loads == []
        assert llm.engine is llm.engine
        assert loads == [("a/b", given)]

    def test_is_not_shared_between_tenants(self, loads: list[Any]) -> None:
        llm = ChatSamKV(model="a/b", namespace="a", store_secret="one")
        configurable = llm.configurable_fields(
            namespace=ConfigurableField(id="namespace"), store_secret=ConfigurableField(id="secret")
        )
        for change in ({"namespace": "b"}, {"secret": "other"}):
            other, _ = configurable.prepare({"configurable": change})  # type: ignore[attr-defined]
            assert other.engine_handle is not llm.engine_handle
        same, _ = configurable.prepare({"configurable": {"secret": "one"}})  # type: ignore[attr-defined]
        assert same.engine_handle is llm.engine_handle

    def test_is_shared_by_copies_of_the_same_model(self, loads: list[Any]) -> None:
        llm = ChatSamKV(model="a/b")
        others = [copy.copy(llm), copy.deepcopy(llm), llm.model_copy(update={"temperature": 1.0})]
        assert all(other.engine is llm.engine for other in others)
        configurable = llm.configurable_fields(
            temperature=ConfigurableField(id="temperature"), model_name=ConfigurableField(id="model")
        )
        warmer, _ = configurable.prepare({"configurable": {"temperature": 0.5}})  # type: ignore[attr-defined]
        other, _ = configurable.prepare({"configurable": {"model": "c/d"}})  # type: ignore[attr-defined]
        assert (warmer.temperature, warmer.engine_handle) == (0.5, llm.engine_handle)
        assert other.engine_handle is not llm.engine_handle
        assert other.engine and loads[-1][0] == "c/d"


class TestIdentity:
    @pytest.mark.parametrize(
        "change",
        [
            {"method": "epic"},
            {"method": {"name": "scout", "sequence_ratio": 0.5}},
            {"config": {"block_tokens": 8}},
            {"temperature": 1.0},
            {"max_tokens": 9},
            {"stop": ["END"]},
            {"seed": 1},
            {"top_p": 0.5},
            {"top_k": 5},
            {"min_p": 0.5},
            {"repetition_penalty": 1.5},
            {"logprobs": True},
            {"explain": True},
            {"store": "elsewhere"},
            {"namespace": "tenant a"},
            {"dtype": "float32"},
            {"revision": "v2"},
            {"model_kwargs": {"quantization_config": {"load_in_8bit": True}}},
        ],
    )
    def test_whatever_changes_answers_changes_the_key_of_answer_caches(self, change: dict[str, Any]) -> None:
        plain, changed = ChatSamKV(model="a/b"), ChatSamKV(model="a/b", **change)
        assert plain._get_llm_string() == ChatSamKV(model="a/b")._get_llm_string()
        assert plain._get_llm_string() != changed._get_llm_string()
        assert plain._get_llm_string() != plain._get_llm_string(method="epic")

    def test_secrets_are_shown_nowhere(self) -> None:
        llm = ChatSamKV(model="a/b", store="redis://user:word@host:6379/2", store_secret="hidden", token="hidden")
        traced = dumps(llm) + str(llm._get_invocation_params()) + str(llm._get_ls_params())
        shown = repr(llm) + str(llm) + llm.model_dump_json() + str(llm.model_dump()) + llm._get_llm_string() + traced
        assert "hidden" not in shown and "word" not in shown
        assert "host:6379/2" in shown

    def test_secrets_stand_in_no_error(self) -> None:
        with pytest.raises(ConfigurationError, match="model is missing") as refused:
            ChatSamKV(store_secret="hidden")
        assert "hidden" not in str(refused.value) + str(refused.value.__cause__), "tracebacks show both"
        with pytest.raises(ConfigurationError, match="store_secret is masked"):
            ChatSamKV(**ChatSamKV(model="a/b", store_secret="hidden").model_dump(mode="json", by_alias=True))

    def test_tracers_see_provider_model_and_stops(self) -> None:
        params = ChatSamKV(model="a/b", stop="END")._get_ls_params()
        assert (params["ls_provider"], params["ls_model_name"], params["ls_stop"]) == ("samkv", "a/b", ["END"])
