"""Former turns of chats: their KV is reused if the same chat goes on, and never else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samkv_rag import EngineConfig, GenerationResult, SamKVEngine
from samkv_rag.prefill import FullPrefill, PrefillMethod, Scout
from samkv_rag.prefill.passes.plan import make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader
from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.runtime.sequence import Choose
from support import tiny

CHUNKS = [tiny.text(seed, 40) for seed in range(6)]
QUESTIONS = ["What does the keeper record?", "And of the tide in the north?", "Which engine was it?"]


class Chat:
    """Messages that grow by a question and its answer, after the chunks, as in frameworks."""

    def __init__(self, engine: SamKVEngine, method: PrefillMethod) -> None:
        self.engine, self.method = engine, method
        self.said: list[dict[str, str]] = []

    def messages(self, question: str, chunks: list[str]) -> list[dict[str, str]]:
        system = {"role": "system", "content": "Use these passages.\n\n" + "\n\n".join(chunks)}
        return [system, *self.said, {"role": "user", "content": question}]

    def ask(self, question: str, chunks: list[str] = CHUNKS[:4]) -> GenerationResult:
        messages = self.messages(question, chunks)
        options = {"method": self.method, "max_new_tokens": 8, "logprobs": True}
        result = self.engine.generate(messages, choose=self.write(), **options)  # type: ignore[arg-type]
        self.said = [*messages[1:], {"role": "assistant", "content": result.text}]
        return result

    def write(self) -> Choose:
        """Have a random model answer in words, whose tokens are the same when read again."""
        token_ids = iter(self.engine.tokenize(f"the {tiny.WORDS[len(self.said)]} of the winter in the north station"))
        return lambda logits: next(token_ids)

    def layout(self, question: str, chunks: list[str] = CHUNKS[:4]) -> PromptLayout:
        prompt = self.engine.apply_chat_template(self.messages(question, chunks))
        return self.engine._assembler.with_cache(self.engine._assembler.split(prompt), with_history=True)


def chat(method: PrefillMethod | None = None, family: str = "llama", **options: Any) -> Chat:
    config = EngineConfig(kv_dtype="float32")
    engine = SamKVEngine(tiny.model(family), tiny.tokenizer(), config=config, **options)
    engine.add_chunks(CHUNKS)
    return Chat(engine, method or tiny.method("naive_reuse"))


def history(layout: PromptLayout) -> list[int]:
    """Return the number of tokens of each cached former turn."""
    return [len(segment.token_ids) for segment in layout.segments if segment.kind == "history"]


@pytest.mark.parametrize("family", ["llama", "phi3-partial-rope", "smollm3", "cohere2"])
def test_a_chat_that_goes_on_answers_as_if_all_of_it_were_computed_again(family: str) -> None:
    kept, computed = chat(family=family), chat(family=family, history_tokens=0)
    for number, question in enumerate(QUESTIONS):
        ours, theirs = kept.ask(question), computed.ask(question)
        assert ours.token_ids == theirs.token_ids
        assert [t.logprob for t in ours.logprobs] == pytest.approx([t.logprob for t in theirs.logprobs], abs=1e-4)
        if family != "cohere2":  # whose layers may have let go of it
            assert (ours.metrics.tokens_reused > theirs.metrics.tokens_reused) == (number > 0)


def test_a_turn_computes_its_own_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = chat()
    first = talk.ask(QUESTIONS[0])
    embed, computed = talk.engine.decoder.embed, []

    def counting_embed(token_ids: torch.Tensor) -> torch.Tensor:
        computed.append(token_ids.shape[1])
        return embed(token_ids)

    monkeypatch.setattr(talk.engine.decoder, "embed", counting_embed)
    layout = talk.layout(QUESTIONS[1])
    num_said = first.metrics.prompt_tokens - layout.chunks[-1].stop + first.metrics.completion_tokens
    assert history(layout) == [num_said - 1]  # the answer's last token was chosen, and never ran
    talk.ask(QUESTIONS[1])
    assert computed[0] == int(layout.is_text.sum())


def test_scouting_looks_with_the_new_question() -> None:
    talk = chat(tiny.method("scout", sequence_ratio=0.4))
    talk.ask(QUESTIONS[0])
    layout = talk.layout(QUESTIONS[1])
    (num_cached,) = history(layout)
    assert layout.tail.start == layout.chunks[-1].stop + num_cached
    result = talk.ask(QUESTIONS[1])
    assert 0 < result.metrics.sequence_ratio <= 0.4


def test_the_same_question_of_other_passages_is_another_chat() -> None:
    talk = chat()
    talk.ask(QUESTIONS[0])
    said, talk.said = talk.said, []
    assert not history(talk.layout(QUESTIONS[0], CHUNKS[2:]))
    talk.said = [said[0], {"role": "assistant", "content": said[1]["content"][:5] + " something else altogether"}]
    assert not history(talk.layout(QUESTIONS[1], CHUNKS[2:]))
    talk.said = [said[0], {"role": "assistant", "content": said[1]["content"][:-3]}]
    assert history(talk.layout(QUESTIONS[1], CHUNKS[2:]))


def test_the_same_words_over_other_passages_are_another_chat() -> None:
    ours, theirs = chat(), chat()
    theirs.engine = ours.engine
    ours.ask(QUESTIONS[0], CHUNKS[:2])
    theirs.ask(QUESTIONS[0], CHUNKS[2:4])
    for talk, own in ((ours, CHUNKS[:2]), (theirs, CHUNKS[2:4])):
        (said,) = (part for part in talk.layout(QUESTIONS[1], own).segments if part.kind == "history")
        fresh = chat()
        fresh.ask(QUESTIONS[0], own)
        (expected,) = (part for part in fresh.layout(QUESTIONS[1], own).segments if part.kind == "history")
        assert said.reader is not None
        assert expected.reader is not None
        torch.testing.assert_close(said.reader.layer(3), expected.reader.layer(3))
    ours.ask(QUESTIONS[1], CHUNKS[:2])
    assert not history(ours.layout(QUESTIONS[2], CHUNKS[4:]))


def test_the_same_words_to_another_user_are_another_chat() -> None:
    talk, alone = chat(), chat()

    def messages(user: str, *said: str) -> list[dict[str, str]]:
        texts = [f"You serve {user}.\n\n" + "\n\n".join(CHUNKS[:3]), *said]
        return [{"role": "assistant" if i and not i % 2 else "user", "content": text} for i, text in enumerate(texts)]

    words = " ".join(tiny.WORDS[:12])

    def answer(engine: SamKVEngine, user: str) -> None:
        ids = iter(engine.tokenize(words))
        options = {"method": talk.method, "max_new_tokens": 12, "choose": lambda _: next(ids)}
        engine.generate(messages(user, QUESTIONS[0]), **options)  # type: ignore[arg-type]

    answer(alone.engine, "the keeper")
    answer(talk.engine, "the keeper")
    answer(talk.engine, "the harbour station in the north")
    follow_up = messages("the keeper", QUESTIONS[0], words, QUESTIONS[1])
    ours, expected = (
        one.engine.generate(follow_up, method=talk.method, max_new_tokens=4, logprobs=True) for one in (talk, alone)
    )
    num_chunk_tokens = sum(use.num_tokens for use in ours.chunks)
    assert ours.metrics.tokens_reused == expected.metrics.tokens_reused > num_chunk_tokens + 20
    assert [t.logprob for t in ours.logprobs] == [t.logprob for t in expected.logprobs]


def test_what_was_said_moves_with_its_place_in_the_prompt() -> None:
    talk = chat()
    talk.ask(QUESTIONS[0])
    layout = talk.layout(QUESTIONS[1], CHUNKS)
    (said,) = (segment for segment in layout.segments if segment.kind == "history")
    assert 0 < said.computed_at < said.start
    decoder = talk.engine.decoder
    keys, values = LayerReader(decoder, make_plan(layout, torch.ones_like(layout.is_chunk)))(0)
    with torch.inference_mode():  # in layer 0 they depend on token and position alone
        expected = decoder.project(decoder.embed(said.token_ids[None]), torch.arange(said.start, said.stop), 0)
    assert torch.allclose(keys[:, :, said.span], expected[0], atol=1e-5)
    assert torch.allclose(values[:, :, said.span], expected[1], atol=1e-5)


def test_passages_of_several_messages_keep_what_was_said_between_them() -> None:
    talk = chat(tiny.method("scout", sequence_ratio=0.3))
    first = [{"role": "user", "content": "\n\n".join([*CHUNKS[:3], QUESTIONS[0]])}]
    answer = talk.engine.generate(first, method=talk.method, max_new_tokens=8, choose=talk.write()).text
    second = [{"role": "user", "content": "\n\n".join([*CHUNKS[3:], QUESTIONS[1]])}]
    talk.said = [*first, {"role": "assistant", "content": answer}]
    prompt = talk.engine.apply_chat_template([*talk.said, *second])
    layout = talk.engine._assembler.with_cache(talk.engine._assembler.split(prompt), with_history=True)
    kinds = [segment.kind for segment in layout.segments if segment.kind != "text"]
    assert kinds == ["prefix", "chunk", "chunk", "chunk", "history", "chunk", "chunk", "chunk"]
    result = talk.engine.generate([*talk.said, *second], method=talk.method, max_new_tokens=8)
    assert [use.text for use in result.chunks] == CHUNKS


def test_a_method_that_equals_full_prefill_does_so_in_every_turn() -> None:
    talk = chat(Scout(sequence_ratio=1, min_chunk_tokens=0))
    talk.ask(QUESTIONS[0])
    messages = talk.messages(QUESTIONS[1], CHUNKS[2:])
    full = talk.engine.generate(messages, method=FullPrefill(), max_new_tokens=8, logprobs=True, choose=talk.write())
    ours = talk.ask(QUESTIONS[1], CHUNKS[2:])
    assert [t.logprob for t in ours.logprobs] == pytest.approx([t.logprob for t in full.logprobs], abs=1e-4)


def test_memory_is_bounded_and_the_oldest_turn_goes_first() -> None:
    talk = chat(history_tokens=80)
    talk.ask(QUESTIONS[0])
    former = talk.said
    assert history(talk.layout(QUESTIONS[1]))
    talk.said = []
    assert sum(turn.cache.num_tokens for turn in talk.engine._history._turns) <= 80
    talk.ask("Who wrote the letter of the winter?")
    assert sum(turn.cache.num_tokens for turn in talk.engine._history._turns) <= 80
    talk.said = former
    assert not history(talk.layout(QUESTIONS[1]))


def test_a_turn_out_of_a_layers_window_is_computed_again() -> None:
    kept, computed = chat(family="gpt-oss"), chat(family="gpt-oss", history_tokens=0)
    for question in QUESTIONS[:2]:  # longer than the window of 16
        assert kept.ask(question).token_ids == computed.ask(question).token_ids
    assert not kept.engine._history._turns
