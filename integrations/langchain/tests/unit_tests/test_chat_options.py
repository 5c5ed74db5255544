"""ChatSamKV without a model: what it takes and refuses, what identifies it, what its copies share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumps
from langchain_core.runnables import ConfigurableField

from langchain_samkv import ChatSamKV
from samkv_rag import EngineConfig
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prefill import Scout


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls of SamKVEngine.from_pretrained, which is replaced."""
    import samkv_rag

    seen: list[tuple[str, dict[str, Any]]] = []

    class Loader:
        @staticmethod
        def from_pretrained(model: str, **options: Any) -> Any:
            seen.append((model, options))
            return object()

    monkeypatch.setitem(vars(samkv_rag), "SamKVEngine", Loader)
    return seen


class TestArguments:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"model": "a/b", "api_key": "x"}, r"unknown option api_key; known are .*max_tokens"),
            ({"model": "a/b", "config": {"block_size": 3}}, "unknown option block_size"),
            ({"engine": object(), "store": "elsewhere"}, "unknown option store"),
            ({}, "^model is missing$"),
            ({"model": "a/b", "max_tokens": 0}, "^max_tokens is "),
            ({"model": "a/b", "max_tokens": "many"}, "^max_tokens is "),
            ({"model": "a/b", "temperature": -1}, "^temperature is "),
            ({"model": "a/b", "top_p": 2.0}, "^top_p is "),
            ({"model": "a/b", "method": "magic"}, "^method is "),
        ],
        ids=lambda value: next(reversed(value), "nothing") if isinstance(value, dict) else "",
    )
    def test_what_is_missing_unknown_or_out_of_range_is_refused_by_name(self, bad: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            ChatSamKV(**bad)

    def test_plain_values_are_understood(self, tmp_path: Path) -> None:
        llm = ChatSamKV(
            model=Path("a/b"),
            stop="END",
            store=tmp_path,
            dtype="torch.bfloat16",
            config={"block_tokens": 8},
            method="scout",
        )
        assert (llm.model_name, llm.stop, llm.store, llm.dtype) == ("a/b", ["END"], str(tmp_path), "bfloat16")
        assert (llm.config, llm.method) == (EngineConfig(block_tokens=8), Scout())
        assert ChatSamKV(model_name="a/b").model_name == "a/b"

    def test_an_unknown_method_of_structured_output_is_refused(self) -> None:
        llm = ChatSamKV(model="a/b")
        with pytest.raises(ConfigurationError, match="method is 'grammar'"):
            llm.with_structured_output({"title": "x", "type": "object"}, method="grammar")
        with pytest.raises(ConfigurationError, match="unknown option retries"):
            llm.with_structured_output({"title": "x", "type": "object"}, retries=3)


class TestEngine:
    @pytest.mark.parametrize(
        "tenant",
        [
            {},
            {"store": "s3://bucket/kv", "namespace": "tenant a", "store_secret": "hidden"},
            {"revision": "v2", "token": "hidden", "device_map": "auto", "model_kwargs": {"variant": "fp16"}},
        ],
    )
    def test_is_loaded_once_with_every_option(self, loads: list[Any], tmp_path: Path, tenant: dict[str, Any]) -> None:
        options = {"store": tmp_path, "dtype": "float32", "config": {"block_tokens": 8}, "method": "epic"} | tenant
        llm = ChatSamKV(model="a/b", **options)
        assert loads == []
        assert llm.engine is llm.engine
        expected = {
            "store": str(tmp_path),
            "config": EngineConfig(block_tokens=8),
            "device": None,
            "dtype": "float32",
            "gguf_file": None,
            "device_map": None,
            "revision": None,
            "token": None,
            "attn_implementation": None,
            "model_kwargs": None,
            "namespace": "",
            "store_secret": None,
        }
        assert loads == [("a/b", expected | tenant)]

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
