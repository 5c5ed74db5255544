"""SamKVLLM: its metadata, arguments, options and prompts."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import EngineConfig, Grammar, SamKVEngine, SamKVError
from samkv_rag.exceptions import ConfigurationError, PromptError
from samkv_rag.frameworks.options import ENGINE_OPTIONS
from samkv_rag.prefill import NaiveReuse, Scout
from support import tiny

MESSAGES = [ChatMessage(role="user", content="Who keeps the light?")]
SYSTEM, HELLO = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}


class TestIdentity:
    def test_metadata_is_the_engines(self, llm: SamKVLLM, watched: Any) -> None:
        assert isinstance(llm, CustomLLM)
        assert SamKVLLM.class_name() == "SamKVLLM"
        metadata = llm.metadata
        assert (metadata.context_window, metadata.num_output) == (4096, 8)
        assert (metadata.model_name, metadata.is_chat_model) == ("llama", True)
        assert llm.tokenizer("The lamp turns.") == watched.tokenize("The lamp turns.")
        assert copy.deepcopy(llm).engine is watched

    def test_survives_a_round_trip_through_its_dict(self) -> None:
        method = {"name": "scout", "sequence_ratio": 0.3}
        llm = SamKVLLM("some/model", config={"block_tokens": 8}, method=method, stop="END")
        again = SamKVLLM.from_json(llm.to_json())
        assert again.to_dict() == llm.to_dict()
        assert (again.method, again.stop, again.config) == (Scout(sequence_ratio=0.3), ["END"], llm.config)

    def test_importing_the_package_does_not_import_torch(self) -> None:
        code = "import sys, llama_index.llms.samkv; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


def test_first_use_loads_the_engine_with_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(SamKVEngine, "from_pretrained", lambda model, **options: loads.append((model, options)) or 1)
    given: dict[str, Any] = dict.fromkeys(ENGINE_OPTIONS, "x") | {"config": EngineConfig(block_tokens=8)}
    given |= {"max_running": 2, "max_waiting": 3} | {
        "model_kwargs": {"variant": "fp16"},
        "method": NaiveReuse(min_chunk_tokens=0),
    }
    llm = SamKVLLM("a/b", **given)
    assert loads == []
    assert llm.engine is llm.engine
    assert loads == [("a/b", given)]


def test_secrets_are_shown_nowhere_and_must_be_given_again() -> None:
    secrets = {"store_secret": "hidden", "token": "hidden too"}
    llm = SamKVLLM("some/model", store="redis://user:word@host:6379/2", namespace="tenant a", **secrets)
    shown = repr(llm) + str(llm) + llm.to_json() + str(llm.to_dict())
    assert "hidden" not in shown and "word" not in shown
    assert "tenant a" in shown and "host:6379/2" in shown
    for name in secrets:
        with pytest.raises(ConfigurationError, match="is masked"):
            SamKVLLM.from_json(llm.to_json(), **{name: secrets[name]})
    again = SamKVLLM.from_json(llm.to_json(), **secrets)
    assert (again.store_secret, again.token, again.namespace) == (llm.store_secret, llm.token, "tenant a")


class TestArguments:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"context_size": 3}, r"unknown option context_size; known are .*max_tokens"),
            ({"max_tokens": 0}, "^max_tokens is "),
            ({"max_new_tokens": 3}, "unknown option max_new_tokens; did you mean max_tokens"),
            ({"model_name": "other"}, "give exactly one of model"),
        ],
        ids=str,
    )
    def test_unknown_and_bad_options_are_refused_by_name(self, bad: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            SamKVLLM("some/model", **bad)

    def test_the_model_has_two_names_and_may_be_a_path(self) -> None:
        assert [SamKVLLM(Path("a/b")).model, SamKVLLM(model_name="a/b").model] == ["a/b", "a/b"]
        with pytest.raises(ConfigurationError, match="give exactly one of model"):
            SamKVLLM()

    def test_an_engine_brings_its_own(self, watched: Any) -> None:
        watched.namespace = "tenant a"
        assert SamKVLLM.from_engine(watched).namespace == "tenant a"
        with pytest.raises(ConfigurationError, match="unknown option store"):
            SamKVLLM.from_engine(watched, store="elsewhere")

    def test_errors_are_not_swallowed_by_llama_index(self) -> None:
        assert issubclass(SamKVError, RuntimeError) and not issubclass(SamKVError, (ValueError, TypeError))


class TestOptions:
    def test_fields_are_the_defaults_of_a_call(self, watched: Any) -> None:
        given: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), 0.7)
        given |= {"top_k": 7, "stop": ["END"], "seed": 5, "logprobs": True, "top_logprobs": 2}
        SamKVLLM.from_engine(watched, max_tokens=2, **given).complete("Hello")
        assert watched.calls[-1][1] == given | {"max_new_tokens": 2, "method": watched.method}

    def test_a_call_overrides_fields_and_none_does_not(self, llm: SamKVLLM, watched: Any) -> None:
        transport = {"extra_headers": {"a": "b"}}  # LlamaIndex sends it to every LLM
        llm.chat(MESSAGES, max_new_tokens=1, stop="END", method="full_prefill", top_p=None, seed=0, **transport)
        _, options = watched.calls[-1]
        assert (options["max_new_tokens"], options["stop"], options["seed"]) == (1, "END", 0)
        assert (options["method"], options["top_p"]) == ("full_prefill", 1.0)
        assert "extra_headers" not in options


class TestPrompts:
    def test_a_plain_completion_becomes_one_user_message(self, watched: Any) -> None:
        llm = SamKVLLM.from_engine(watched, max_tokens=1, system_prompt="Be brief.")
        llm.complete("Hello")
        llm.complete("Hello", formatted=True)
        assert [prompt for prompt, _ in watched.calls] == [watched.apply_chat_template([SYSTEM, HELLO]), "Hello"]

    def test_without_a_template_messages_and_system_prompt_become_one_text(self, without_template: Any) -> None:
        llm = SamKVLLM.from_engine(without_template, max_tokens=1, system_prompt="Be brief.")
        assert not llm.metadata.is_chat_model
        llm.complete("Hello")
        llm.chat(MESSAGES)
        prompts = [prompt for prompt, _ in without_template.calls]
        assert prompts == ["Be brief.\n\nHello", "user: Who keeps the light?\nassistant: "]

    def test_the_users_own_formats_win(self, watched: Any) -> None:
        formats = {"completion_to_prompt": "Q: {}".format, "messages_to_prompt": lambda asked: f"M: {asked[0].content}"}
        llm = SamKVLLM.from_engine(watched, max_tokens=1, **formats)
        llm.complete("Hello")
        llm.chat(MESSAGES)
        assert [prompt for prompt, _ in watched.calls] == ["Q: Hello", "M: Who keeps the light?"]

    def test_predict_sends_one_system_message(self, watched: Any) -> None:
        """LlamaIndex puts system_prompt before the template's own system message, here with another role name."""
        llm = SamKVLLM.from_engine(watched, max_tokens=1, system_prompt="Be brief.")
        template = ChatPromptTemplate(
            [ChatMessage(role="developer", content="Cite."), ChatMessage(content="{question}")]
        )
        llm.predict(template, question="Hello")
        joined = [{"role": "system", "content": "Be brief.\n\nCite."}, HELLO]
        assert watched.calls[-1][0] == watched.apply_chat_template(joined)

    def test_a_template_without_a_system_role_gets_its_text_with_the_users(self, tiny_engine: SamKVEngine) -> None:
        template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + tiny.CHAT_TEMPLATE
        tokenizer = copy.deepcopy(tiny_engine.tokenizer.tokenizer)
        tokenizer.chat_template = template
        engine = SamKVEngine(tiny_engine.decoder.model, tokenizer)
        llm = SamKVLLM.from_engine(engine, max_tokens=4, system_prompt="Be brief.")
        assert llm.complete("Hello").text == llm.chat([ChatMessage("Be brief.\n\nHello")]).message.content

    @pytest.mark.parametrize("engine", ["watched", "without_template"])
    def test_an_image_is_refused(self, request: pytest.FixtureRequest, engine: str) -> None:
        message = ChatMessage(role="user", blocks=[TextBlock(text="Look"), ImageBlock(image=b"abc")])
        with pytest.raises(PromptError, match="user message holds a image block"):
            SamKVLLM.from_engine(request.getfixturevalue(engine)).chat([message])


def test_other_answers_are_beside_the_first(tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=8, temperature=1.5)
    alone = [llm.chat(MESSAGES, seed=3 + i).message.content for i in range(3)]
    response = llm.chat(MESSAGES, seed=3, n=3)
    assert [response.message.content, *response.raw["others"]] == alone
    assert response.raw["usage"]["completion_tokens"] > response.raw["metrics"]["completion_tokens"]
    streamed = list(llm.stream_chat(MESSAGES, seed=3, n=3))
    assert "".join(one.delta or "" for one in streamed) == streamed[-1].message.content == alone[0]
    assert "others" not in llm.chat(MESSAGES).raw


def test_logprobs_are_the_engines(tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=8)
    asked: Any = [{"role": "user", "content": "Who keeps the light?"}]
    for top in (0, 2):
        expected = tiny_engine.generate(asked, max_new_tokens=8, logprobs=True, top_logprobs=top).logprobs
        for response in (
            llm.chat(MESSAGES, logprobs=True, top_logprobs=top),
            llm.complete(MESSAGES[0].content or "", logprobs=True, top_logprobs=top),
            list(llm.stream_chat(MESSAGES, logprobs=True, top_logprobs=top))[-1],
        ):
            found = [[(one.token, one.logprob) for one in token] for token in response.logprobs or ()]
            assert found == [[(one.text, one.logprob) for one in token.top or (token,)] for token in expected]
    assert llm.chat(MESSAGES).logprobs is None


def test_a_grammar_is_kept_to(tiny_engine: SamKVEngine) -> None:
    llm = SamKVLLM.from_engine(tiny_engine, max_tokens=8)
    assert llm.chat(MESSAGES, grammar=Grammar.choices(["left", "right"])).message.content in ("left", "right")
