"""SamKVLLM on a fake engine: what it is, takes, refuses and sends."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import SecretStr
from llama_index.core.llms.custom import CustomLLM
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import EngineConfig, SamKVError
from samkv_rag.exceptions import ConfigurationError, PromptError
from samkv_rag.prefill import NaiveReuse, Scout

MESSAGES = [ChatMessage(role="user", content="Who keeps the light?")]


class TestIdentity:
    def test_is_a_llama_index_llm(self) -> None:
        assert {"BaseLLM", "CustomLLM"} <= {cls.__name__ for cls in SamKVLLM.__mro__}
        assert issubclass(SamKVLLM, (BaseLLM, CustomLLM))
        assert SamKVLLM.class_name() == "SamKVLLM"

    def test_metadata_is_the_engines(self, fake_llm: SamKVLLM) -> None:
        metadata = fake_llm.metadata
        assert (metadata.context_window, metadata.num_output) == (4096, 3)
        assert (metadata.model_name, metadata.is_chat_model) == ("fake/model", True)

    def test_a_model_without_template_is_no_chat_model(self, make_fake_engine: Any) -> None:
        assert not SamKVLLM.from_engine(make_fake_engine(has_chat_template=False)).metadata.is_chat_model

    def test_survives_a_round_trip_through_its_dict(self) -> None:
        method = {"name": "scout", "sequence_ratio": 0.3}
        llm = SamKVLLM("some/model", config={"block_tokens": 8}, method=method, stop="END")
        again = SamKVLLM.from_json(llm.to_json())
        assert again.to_dict() == llm.to_dict()
        assert (again.method, again.stop, again.config) == (Scout(sequence_ratio=0.3), ["END"], llm.config)

    def test_a_deep_copy_shares_the_engine(self, fake_llm: SamKVLLM) -> None:
        assert copy.deepcopy(fake_llm).engine is fake_llm.engine

    def test_importing_the_package_does_not_import_torch(self) -> None:
        code = "import sys, llama_index.llms.samkv; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0


class TestLoading:
    @pytest.fixture
    def loads(self, monkeypatch: pytest.MonkeyPatch, fake_engine: Any) -> list[tuple[str, dict[str, Any]]]:
        """Calls of SamKVEngine.from_pretrained, which is replaced."""
        import samkv_rag

        seen: list[tuple[str, dict[str, Any]]] = []

        class Loader:
            @staticmethod
            def from_pretrained(model: str, **options: Any) -> Any:
                time.sleep(0.05)
                seen.append((model, options))
                return fake_engine

        monkeypatch.setitem(vars(samkv_rag), "SamKVEngine", Loader)
        return seen

    def test_waits_for_first_use_and_happens_once(self, loads: list[Any]) -> None:
        llm = SamKVLLM("some/model")
        assert loads == []
        threads = [threading.Thread(target=lambda: llm.engine) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(loads) == 1

    def test_hands_every_option_to_the_engine(self, loads: list[Any], tmp_path: Any) -> None:
        config, method = {"block_tokens": 8}, {"name": "naive_reuse", "min_chunk_tokens": 0}
        llm = SamKVLLM("some/model", store=tmp_path, config=config, method=method, dtype="torch.bfloat16")
        assert llm.engine
        ((model, options),) = loads
        assert model == "some/model"
        assert options["config"] == EngineConfig(block_tokens=8)
        assert options["method"] == NaiveReuse(min_chunk_tokens=0)
        assert (options["store"], options["dtype"], options["gguf_file"]) == (str(tmp_path), "bfloat16", None)
        assert (options["namespace"], options["store_secret"]) == ("", None)

    @pytest.mark.parametrize("secret", ["hidden", SecretStr("hidden")])
    def test_hands_tenant_secret_and_url_to_the_engine_as_they_are(self, loads: list[Any], secret: Any) -> None:
        store = "redis://user:word@host:6379/2"
        assert SamKVLLM("some/model", store=store, namespace="tenant a", store_secret=secret).engine
        ((_, options),) = loads
        assert (options["store"], options["namespace"], options["store_secret"]) == (store, "tenant a", "hidden")


class TestSecrets:
    LLM = SamKVLLM("some/model", store="redis://user:word@host:6379/2", store_secret="hidden", namespace="tenant a")

    def test_are_shown_nowhere(self) -> None:
        shown = repr(self.LLM) + str(self.LLM) + self.LLM.to_json() + str(self.LLM.to_dict())
        assert "hidden" not in shown and "word" not in shown
        assert "tenant a" in shown and "host:6379/2" in shown

    def test_a_written_out_one_must_be_given_again(self) -> None:
        written = self.LLM.to_json()
        with pytest.raises(ConfigurationError, match="masked"):
            SamKVLLM.from_json(written)
        again = SamKVLLM.from_json(written, store_secret="hidden")
        assert again.store_secret == self.LLM.store_secret and again.namespace == "tenant a"

    @pytest.mark.parametrize(("bad", "words"), [("", "is empty"), (b"hidden", "is a bytes"), (["hidden"], "is a list")])
    def test_bad_ones_are_refused_unseen(self, bad: Any, words: str) -> None:
        with pytest.raises(ConfigurationError, match=f"store_secret {words}") as refused:
            SamKVLLM("some/model", store_secret=bad)
        assert "hidden" not in str(refused.value)

    def test_an_engine_brings_its_own(self, make_fake_engine: Any) -> None:
        assert SamKVLLM.from_engine(make_fake_engine(namespace="tenant a")).namespace == "tenant a"


class TestArguments:
    def test_an_unknown_one_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigurationError, match=r"unknown option context_size; known are .*max_tokens"):
            SamKVLLM("some/model", context_size=3)

    @pytest.mark.parametrize(
        "bad", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 2.0}, {"method": "magic"}, {"max_tokens": "many"}]
    )
    def test_one_out_of_range_is_refused_by_name(self, bad: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(bad))):
            SamKVLLM("some/model", **bad)

    def test_an_unknown_config_option_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="unknown option block_size"):
            SamKVLLM("some/model", config={"block_size": 3})

    def test_what_belongs_to_the_engine_is_refused_beside_one(self, fake_engine: Any) -> None:
        with pytest.raises(ConfigurationError, match="unknown option store"):
            SamKVLLM.from_engine(fake_engine, store="elsewhere")

    def test_errors_are_not_swallowed_by_llama_index(self) -> None:
        assert issubclass(SamKVError, RuntimeError) and not issubclass(SamKVError, (ValueError, TypeError))

    def test_both_names_of_the_length_limit_are_refused(self, fake_llm: SamKVLLM) -> None:
        with pytest.raises(ConfigurationError, match="same option"):
            fake_llm.complete("Hello", max_tokens=1, max_new_tokens=2)


class TestOptions:
    def test_fields_are_the_defaults_of_a_call(self, fake_engine: Any) -> None:
        llm = SamKVLLM.from_engine(fake_engine, max_tokens=2, temperature=0.7, top_p=0.9, stop=["END"], seed=5)
        llm.complete("Hello")
        _, options = fake_engine.calls[-1]
        assert options == {
            "max_new_tokens": 2,
            "temperature": 0.7,
            "top_p": 0.9,
            "stop": ["END"],
            "seed": 5,
            "method": Scout(sequence_ratio=0.5),  # the engine's
        }

    def test_a_call_overrides_them_and_none_does_not(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        fake_llm.chat(MESSAGES, max_new_tokens=1, stop="END", method="full_prefill", top_p=None)
        _, options = fake_engine.calls[-1]
        assert (options["max_new_tokens"], options["stop"]) == (1, "END")
        assert (options["method"], options["top_p"]) == ("full_prefill", 1.0)

    def test_a_seed_of_zero_reaches_the_engine(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        fake_llm.complete("Hello", seed=0)
        assert fake_engine.calls[-1][1]["seed"] == 0

    def test_transport_options_of_llama_index_are_ignored(self, fake_llm: SamKVLLM) -> None:
        assert fake_llm.chat(MESSAGES, max_tokens=1, extra_headers={"a": "b"}).message.content == "w0 "


class TestPrompts:
    def test_a_plain_completion_becomes_one_user_message(self, fake_engine: Any) -> None:
        SamKVLLM.from_engine(fake_engine, max_tokens=1, system_prompt="Be brief.").complete("Hello")
        system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
        assert fake_engine.calls[-1][0] == [system, user]

    def test_a_formatted_completion_is_used_verbatim(self, fake_engine: Any) -> None:
        llm = SamKVLLM.from_engine(fake_engine, max_tokens=1, system_prompt="Be brief.")
        llm.complete("<user>Hello", formatted=True)
        assert fake_engine.calls[-1][0] == "<user>Hello"

    def test_without_a_template_the_system_prompt_stands_before_the_text(self, make_fake_engine: Any) -> None:
        engine = make_fake_engine(has_chat_template=False)
        SamKVLLM.from_engine(engine, max_tokens=1, system_prompt="Be brief.").complete("Hello")
        assert engine.calls[-1][0] == "Be brief.\n\nHello"

    def test_without_a_template_messages_become_one_text(self, make_fake_engine: Any) -> None:
        engine = make_fake_engine(has_chat_template=False)
        SamKVLLM.from_engine(engine, max_tokens=1).chat(MESSAGES)
        assert engine.calls[-1][0] == "user: Who keeps the light?\nassistant: "

    def test_the_users_own_formats_win(self, fake_engine: Any) -> None:
        llm = SamKVLLM.from_engine(
            fake_engine,
            max_tokens=1,
            completion_to_prompt=lambda prompt: f"Q: {prompt}",
            messages_to_prompt=lambda messages: f"M: {messages[0].content}",
        )
        llm.complete("Hello")
        llm.chat(MESSAGES)
        assert [prompt for prompt, _ in fake_engine.calls] == ["Q: Hello", "M: Who keeps the light?"]

    def test_predict_sends_one_system_message(self, fake_engine: Any) -> None:
        """LlamaIndex puts system_prompt before the template's own system message."""
        from llama_index.core.prompts import ChatPromptTemplate

        llm = SamKVLLM.from_engine(fake_engine, max_tokens=1, system_prompt="Be brief.")
        template = ChatPromptTemplate([ChatMessage(role="system", content="Cite."), ChatMessage(content="{question}")])
        llm.predict(template, question="Who?")
        assert fake_engine.calls[-1][0] == [
            {"role": "system", "content": "Be brief.\n\nCite."},
            {"role": "user", "content": "Who?"},
        ]

    def test_roles_are_those_of_chat_templates(self, fake_llm: SamKVLLM, fake_engine: Any) -> None:
        roles = [MessageRole.DEVELOPER, MessageRole.USER, MessageRole.MODEL, MessageRole.FUNCTION, MessageRole.CHATBOT]
        fake_llm.chat([ChatMessage(role=role, content="x") for role in roles])
        sent = [message["role"] for message in fake_engine.calls[-1][0]]
        assert sent == ["system", "user", "assistant", "tool", "assistant"]

    @pytest.mark.parametrize("template", [True, False])
    def test_an_image_is_refused(self, make_fake_engine: Any, template: bool) -> None:
        message = ChatMessage(role="user", blocks=[TextBlock(text="Look"), ImageBlock(image=b"abc")])
        with pytest.raises(PromptError, match="user message holds a image block"):
            SamKVLLM.from_engine(make_fake_engine(has_chat_template=template)).chat([message])
