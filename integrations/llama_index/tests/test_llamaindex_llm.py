"""SamKVLLM: what it is, takes, refuses and sends."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import SecretStr
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import EngineConfig, SamKVEngine, SamKVError
from samkv_rag.exceptions import ConfigurationError, PromptError
from samkv_rag.prefill import NaiveReuse, Scout

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

    def test_a_model_without_template_is_no_chat_model(self, without_template: Any) -> None:
        assert not SamKVLLM.from_engine(without_template).metadata.is_chat_model

    def test_survives_a_round_trip_through_its_dict(self) -> None:
        method = {"name": "scout", "sequence_ratio": 0.3}
        llm = SamKVLLM("some/model", config={"block_tokens": 8}, method=method, stop="END")
        again = SamKVLLM.from_json(llm.to_json())
        assert again.to_dict() == llm.to_dict()
        assert (again.method, again.stop, again.config) == (Scout(sequence_ratio=0.3), ["END"], llm.config)

    def test_a_deep_copy_shares_the_engine(self, llm: SamKVLLM) -> None:
        assert copy.deepcopy(llm).engine is llm.engine

    def test_importing_the_package_does_not_import_torch(self) -> None:
        code = "import sys, llama_index.llms.samkv; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


@pytest.mark.parametrize("secret", [None, "hidden", SecretStr("hidden")])
def test_first_use_loads_the_engine_with_every_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, secret: Any
) -> None:
    loads: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(SamKVEngine, "from_pretrained", lambda model, **options: loads.append((model, options)) or 1)
    config, method = {"block_tokens": 8}, {"name": "naive_reuse", "min_chunk_tokens": 0}
    tenant = {"namespace": "tenant a", "store": "redis://user:word@host:6379/2"} if secret else {"store": tmp_path}
    tenant |= {"revision": "v2", "device_map": {"": 0}, "model_kwargs": {"variant": "fp16"}} if secret else {}
    llm = SamKVLLM("a/b", config=config, method=method, dtype="torch.bfloat16", store_secret=secret, **tenant)
    assert loads == []
    assert llm.engine is llm.engine
    expected = {
        "store": str(tmp_path),
        "config": EngineConfig(block_tokens=8),
        "method": NaiveReuse(min_chunk_tokens=0),
        "device": None,
        "dtype": "bfloat16",
        "gguf_file": None,
        "device_map": None,
        "revision": None,
        "token": None,
        "attn_implementation": None,
        "model_kwargs": None,
        "namespace": "",
        "store_secret": secret and "hidden",
    }
    assert loads == [("a/b", expected | tenant | {"store": str(tenant["store"])})]


class TestSecrets:
    LLM = SamKVLLM(
        "some/model",
        store="redis://user:word@host:6379/2",
        store_secret="hidden",
        token="hidden too",
        namespace="tenant a",
    )

    def test_are_shown_nowhere(self) -> None:
        shown = repr(self.LLM) + str(self.LLM) + self.LLM.to_json() + str(self.LLM.to_dict())
        assert "hidden" not in shown and "word" not in shown
        assert "tenant a" in shown and "host:6379/2" in shown

    def test_a_written_out_one_must_be_given_again(self) -> None:
        written = self.LLM.to_json()
        for rest in ({"token": "hidden too"}, {"store_secret": "hidden"}):
            with pytest.raises(ConfigurationError, match="is masked"):
                SamKVLLM.from_json(written, **rest)
        again = SamKVLLM.from_json(written, store_secret="hidden", token="hidden too")
        assert again.store_secret == self.LLM.store_secret and again.namespace == "tenant a"
        assert again.token == self.LLM.token

    @pytest.mark.parametrize(("bad", "words"), [("", "is empty"), (b"hidden", "is a bytes"), (["hidden"], "is a list")])
    def test_bad_ones_are_refused_unseen(self, bad: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=f"store_secret {words}") as refused:
            SamKVLLM("some/model", store_secret=bad)
        assert "hidden" not in str(refused.value)


class TestArguments:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"context_size": 3}, r"unknown option context_size; known are .*max_tokens"),
            ({"config": {"block_size": 3}}, "unknown option block_size"),
            ({"max_tokens": 0}, "^max_tokens is "),
            ({"max_tokens": "many"}, "^max_tokens is "),
            ({"temperature": -1}, "^temperature is "),
            ({"top_p": 2.0}, "^top_p is "),
            ({"method": "magic"}, "^method is "),
            ({"max_new_tokens": 3}, "unknown option max_new_tokens; did you mean max_tokens"),
            ({"model_name": "other"}, "model_name is another word for it"),
        ],
        ids=str,
    )
    def test_what_is_unknown_or_out_of_range_is_refused_by_name(self, bad: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words):
            SamKVLLM("some/model", **bad)

    def test_the_model_goes_by_both_names_and_may_be_a_path(self) -> None:
        assert [SamKVLLM(Path("a/b")).model, SamKVLLM(model_name="a/b").model] == ["a/b", "a/b"]
        with pytest.raises(ConfigurationError, match="give the model"):
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
        given: dict[str, Any] = {
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "stop": ["END"],
            "seed": 5,
            "logprobs": True,
            "top_logprobs": 2,
        }
        SamKVLLM.from_engine(watched, max_tokens=2, **given).complete("Hello")
        assert watched.calls[-1][1] == given | {"max_new_tokens": 2, "method": watched.method}

    def test_a_call_overrides_them_and_none_does_not(self, llm: SamKVLLM, watched: Any) -> None:
        llm.chat(MESSAGES, max_new_tokens=1, stop="END", method="full_prefill", top_p=None, seed=0)
        _, options = watched.calls[-1]
        assert (options["max_new_tokens"], options["stop"], options["seed"]) == (1, "END", 0)
        assert (options["method"], options["top_p"]) == ("full_prefill", 1.0)

    def test_transport_options_of_llama_index_are_ignored(self, llm: SamKVLLM, watched: Any) -> None:
        llm.chat(MESSAGES, extra_headers={"a": "b"})
        assert "extra_headers" not in watched.calls[-1][1]


class TestPrompts:
    @pytest.mark.parametrize(
        ("formatted", "prompt"), [(False, [SYSTEM, HELLO]), (True, "Hello")], ids=["plain", "formatted"]
    )
    def test_a_plain_completion_becomes_one_user_message(self, watched: Any, formatted: bool, prompt: Any) -> None:
        llm = SamKVLLM.from_engine(watched, max_tokens=1, system_prompt="Be brief.")
        llm.complete("Hello", formatted=formatted)
        assert watched.calls[-1][0] == prompt

    def test_without_a_template_messages_and_system_prompt_become_one_text(self, without_template: Any) -> None:
        llm = SamKVLLM.from_engine(without_template, max_tokens=1, system_prompt="Be brief.")
        llm.complete("Hello")
        llm.chat(MESSAGES)
        prompts = [prompt for prompt, _ in without_template.calls]
        assert prompts == ["Be brief.\n\nHello", "user: Who keeps the light?\nassistant: "]

    def test_the_users_own_formats_win(self, watched: Any) -> None:
        llm = SamKVLLM.from_engine(
            watched,
            max_tokens=1,
            completion_to_prompt=lambda prompt: f"Q: {prompt}",
            messages_to_prompt=lambda messages: f"M: {messages[0].content}",
        )
        llm.complete("Hello")
        llm.chat(MESSAGES)
        assert [prompt for prompt, _ in watched.calls] == ["Q: Hello", "M: Who keeps the light?"]

    def test_predict_sends_one_system_message(self, watched: Any) -> None:
        """LlamaIndex puts system_prompt before the template's own system message."""
        llm = SamKVLLM.from_engine(watched, max_tokens=1, system_prompt="Be brief.")
        template = ChatPromptTemplate([ChatMessage(role="system", content="Cite."), ChatMessage(content="{question}")])
        llm.predict(template, question="Hello")
        assert watched.calls[-1][0] == [{"role": "system", "content": "Be brief.\n\nCite."}, HELLO]

    def test_roles_are_those_of_chat_templates(self, llm: SamKVLLM, watched: Any) -> None:
        roles = [MessageRole.DEVELOPER, MessageRole.USER, MessageRole.MODEL, MessageRole.FUNCTION, MessageRole.CHATBOT]
        llm.chat([ChatMessage(role=role, content="x") for role in roles])
        sent = [message["role"] for message in watched.calls[-1][0]]
        assert sent == ["system", "user", "assistant", "tool", "assistant"]

    @pytest.mark.parametrize("engine", ["watched", "without_template"])
    def test_an_image_is_refused(self, request: pytest.FixtureRequest, engine: str) -> None:
        message = ChatMessage(role="user", blocks=[TextBlock(text="Look"), ImageBlock(image=b"abc")])
        with pytest.raises(PromptError, match="user message holds a image block"):
            SamKVLLM.from_engine(request.getfixturevalue(engine)).chat([message])
