"""ChatSamKV without a model: its arguments, its identity in caches, and what copies share."""

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
from samkv_rag.frameworks.options import ENGINE_OPTIONS, OWN_CALL_OPTIONS
from support import tiny

GIVEN: dict[str, Any] = dict.fromkeys(ENGINE_OPTIONS, "x") | {"max_running": 2, "max_waiting": 3}
GIVEN |= {"config": EngineConfig(block_tokens=8), "model_kwargs": {"variant": "fp16"}}
CHANGED = GIVEN | dict.fromkeys(OWN_CALL_OPTIONS, 0.5) | {"stop": "END", "logprobs": True, "explain": True}
CHANGED |= dict.fromkeys(("max_tokens", "seed", "top_k", "top_logprobs"), 9)
CHANGED |= {"method": {"name": "scout", "sequence_ratio": 0.5}}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Calls of SamKVEngine.from_pretrained, which loads nothing here."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def load(model: str, **options: Any) -> object:
        seen.append((model, options))
        return object()

    monkeypatch.setattr(SamKVEngine, "from_pretrained", load)
    return seen


def configured(llm: ChatSamKV, **changes: Any) -> ChatSamKV:
    """The model that a chain runs with these ``configurable`` values."""
    configurable: Any = llm.configurable_fields(**{name: ConfigurableField(id=name) for name in changes})
    changed, _ = configurable.prepare({"configurable": changes})
    return changed  # type: ignore[no-any-return]


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
    def test_missing_unknown_and_bad_options_are_refused_by_name(self, bad: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            ChatSamKV(**bad)

    def test_the_model_has_two_names_and_may_be_a_path(self) -> None:
        assert ChatSamKV(model=Path("a/b")).model_name == ChatSamKV(model_name="a/b").model_name == "a/b"

    def test_an_unknown_method_of_structured_output_is_refused(self) -> None:
        llm = ChatSamKV(model="a/b")
        with pytest.raises(ConfigurationError, match="method is 'grammar'"):
            llm.with_structured_output({"title": "x", "type": "object"}, method="grammar")
        with pytest.raises(ConfigurationError, match="unknown option retries"):
            llm.with_structured_output({"title": "x", "type": "object"}, retries=3)


class TestEngine:
    def test_is_loaded_once_with_every_option(self, loads: list[Any]) -> None:
        llm = ChatSamKV(model="a/b", method="epic", **GIVEN)
        assert loads == []
        assert llm.engine is llm.engine
        assert loads == [("a/b", GIVEN)]

    def test_is_not_shared_between_tenants(self, loads: list[Any]) -> None:
        llm = ChatSamKV(model="a/b", namespace="a", store_secret="one")
        for change in ({"namespace": "b"}, {"store_secret": "other"}):
            assert configured(llm, **change).engine_handle is not llm.engine_handle
        assert configured(llm, store_secret="one").engine_handle is llm.engine_handle

    def test_is_shared_by_copies_of_the_same_model(self, loads: list[Any]) -> None:
        llm = ChatSamKV(model="a/b")
        others = [copy.copy(llm), copy.deepcopy(llm), llm.model_copy(update={"temperature": 1.0})]
        assert all(other.engine is llm.engine for other in others)
        warmer = configured(llm, temperature=0.5)
        assert (warmer.temperature, warmer.engine_handle) == (0.5, llm.engine_handle)
        assert configured(llm, model_name="c/d").engine and loads[-1][0] == "c/d"


class TestIdentity:
    @pytest.mark.parametrize("name", CHANGED)
    def test_whatever_changes_answers_changes_the_key_of_answer_caches(self, name: str) -> None:
        plain, changed = ChatSamKV(model="a/b"), ChatSamKV(model="a/b", **{name: CHANGED[name]})
        assert plain._get_llm_string() == ChatSamKV(model="a/b")._get_llm_string()
        assert (plain._get_llm_string() == changed._get_llm_string()) == (name in ("token", "store_secret"))
        assert plain._get_llm_string() != plain._get_llm_string(method="epic")

    def test_engines_with_other_weights_share_no_answers(self) -> None:
        models = tiny.model(), copy.deepcopy(tiny.model())
        models[1].get_input_embeddings().weight.data += 1
        llms = [ChatSamKV(engine=SamKVEngine(model, tiny.tokenizer())) for model in (*models, models[0])]
        first, other, again = (llm._get_llm_string() for llm in llms)
        assert first == again != other

    def test_secrets_are_shown_nowhere(self) -> None:
        llm = ChatSamKV(model="a/b", store="redis://user:word@host:6379/2", store_secret="hidden", token="hidden")
        traced = dumps(llm) + str(llm._get_invocation_params()) + str(llm._get_ls_params())
        shown = repr(llm) + str(llm) + llm.model_dump_json() + str(llm.model_dump()) + llm._get_llm_string() + traced
        assert "hidden" not in shown and "word" not in shown
        assert "host:6379/2" in shown

    def test_no_error_shows_a_secret(self) -> None:
        with pytest.raises(ConfigurationError, match="model is missing") as refused:
            ChatSamKV(store_secret="hidden")
        assert "hidden" not in str(refused.value) + str(refused.value.__cause__), "tracebacks show both"
        with pytest.raises(ConfigurationError, match="store_secret is masked"):
            ChatSamKV(**ChatSamKV(model="a/b", store_secret="hidden").model_dump(mode="json", by_alias=True))

    def test_tracers_see_provider_model_and_stops(self) -> None:
        params = ChatSamKV(model="a/b", stop="END")._get_ls_params()
        assert (params["ls_provider"], params["ls_model_name"], params["ls_stop"]) == ("samkv", "a/b", ["END"])
