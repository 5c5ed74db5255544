"""The engine's public behaviour: answers, streams, budgets, options, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.exceptions import (
    ChatTemplateError,
    ChunkTooLongError,
    ConfigurationError,
    EmptyChunkError,
    ModelNotFoundError,
    PromptError,
)
from samkv_rag.prefill import Scout, resolve_method
from support import tiny
from support.engines import CHUNKS, PROMPT, MakeEngine


@pytest.fixture
def engine(make_engine: MakeEngine) -> SamKVEngine:
    return make_engine(chunks=CHUNKS)


def test_chunks_are_added_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    first = engine.add_chunks([*CHUNKS, CHUNKS[0], f"  {CHUNKS[1]}\n", "too short"])
    assert (first.num_added, first.num_reused, first.num_skipped) == (4, 0, 1)
    assert first.num_tokens == sum(map(engine.count_tokens, CHUNKS))
    again = engine.add_chunks(CHUNKS)
    assert (again.num_added, again.num_reused, again.num_tokens) == (0, 4, 0)
    assert all(map(engine.has_chunk, CHUNKS))


def test_batching_does_not_change_a_cache(make_engine: MakeEngine) -> None:
    """No token may attend to right padding."""
    texts = [tiny.text(seed, num_words) for seed, num_words in enumerate((5, 80, 33, 12, 61))]
    together, alone = make_engine(chunks=texts), make_engine()
    for text in texts:
        alone.add_chunks([text])
    for (a, _), (b, _) in zip(together._library.read(texts), alone._library.read(texts), strict=True):
        for layer in range(4):
            for ours, theirs in zip(a.layer(layer), b.layer(layer), strict=True):
                assert (ours - theirs).abs().max() < 1e-5


def test_chunks_of_different_preambles_are_not_shared(make_engine: MakeEngine, tmp_path: Path) -> None:
    make_engine(store=tmp_path, chunks=CHUNKS, preamble="harbour")
    assert make_engine(store=tmp_path, preamble="harbour").has_chunk(CHUNKS[0])
    assert not make_engine(store=tmp_path, preamble="lantern").has_chunk(CHUNKS[0])
    with pytest.raises(ConfigurationError, match="preamble is 3; it must be text"):
        make_engine(preamble=3)


def test_progress_is_shown_when_asked_for(make_engine: MakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    make_engine(chunks=CHUNKS)
    assert capsys.readouterr().err == ""
    make_engine().add_chunks(CHUNKS, show_progress=True)
    assert "Caching chunks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ("", EmptyChunkError, r"chunk 1 is .*; it must be text"),
        ("  \n", EmptyChunkError, r"chunk 1 is .*; it must be text"),
        (None, EmptyChunkError, "chunk 1 is None; it must be text"),
        (3, EmptyChunkError, "chunk 1 is 3; it must be text"),
        ("half\ud800 of a pair", EmptyChunkError, r"chunk 1 holds half a surrogate pair .* at character 4"),
        (
            tiny.text(1, 9000),
            ChunkTooLongError,
            r"has \d+ tokens behind a preamble of \d+, the model's context window is 4096; split it",
        ),
    ],
    ids=["empty", "white space", "none", "a number", "half a pair", "long"],
)
def test_a_wrong_chunk_is_refused_before_anything_is_computed(
    engine: SamKVEngine, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine.add_chunks([tiny.text(99), wrong])
    assert not engine.has_chunk(tiny.text(99))


def test_a_source_that_cannot_be_stored_is_refused_before_anything_is_computed(engine: SamKVEngine) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"source 'r\\udce9sum.txt' holds half a surrogate pair \('\\udce9'\) at .*, which is not valid Unicode",
    ):
        engine.add_chunks([tiny.text(99)], sources=["r\udce9sum.txt"])
    assert not engine.has_chunk(tiny.text(99))


@pytest.mark.parametrize(("method", "num_last"), [("scout", 0), ("samkv", 4)])
@pytest.mark.parametrize("ratio", [0.03, 0.15, 0.5, 0.99])
def test_the_budget_is_a_hard_cap(make_engine: MakeEngine, method: str, num_last: int, ratio: float) -> None:
    engine = make_engine(method=method, chunks=CHUNKS)
    result = engine.generate(PROMPT, max_new_tokens=2, method=tiny.method(method, sequence_ratio=ratio))
    metrics = result.metrics
    assert metrics.sequence_ratio <= ratio
    assert method != "scout" or metrics.sequence_ratio > ratio - 1 / metrics.chunk_tokens, "scout uses all its budget"
    assert metrics.recompute_ratio == metrics.sequence_ratio
    kept = sum(len(chunk.retained_tokens) for chunk in result.chunks)
    assert kept / metrics.chunk_tokens == metrics.sequence_ratio
    text_tokens = metrics.prompt_tokens - metrics.chunk_tokens
    assert metrics.kv_bytes_resident == engine.decoder.kv_bytes(kept + text_tokens)
    assert metrics.kv_bytes_full == engine.decoder.kv_bytes(metrics.prompt_tokens)
    for chunk in result.chunks if ratio > 0.15 else ():
        assert {0, 1, 2, 3, *range(chunk.num_tokens - num_last, chunk.num_tokens)} <= set(chunk.retained_tokens)


def test_all_chunks_of_a_prompt_are_prefetched_before_the_first_is_read(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    get = engine.store.get
    monkeypatch.setattr(engine.store, "prefetch", lambda keys: calls.append(len(list(keys))) or (lambda: None))
    monkeypatch.setattr(engine.store, "get", lambda key: calls.append("get") or get(key))
    engine.generate(PROMPT, max_new_tokens=1)
    assert calls == [len(CHUNKS), *["get"] * len(CHUNKS)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "top_p": 0.9, "seed": 9}], ids=["greedy", "sampled"])
def test_streamed_equals_not_streamed_and_the_same_again(engine: SamKVEngine, options: dict[str, Any]) -> None:
    whole = engine.generate(PROMPT, max_new_tokens=24, **options)
    stream = engine.stream(PROMPT, max_new_tokens=24, **options)
    assert "".join(piece.text for piece in stream) == whole.text == stream.result.text
    assert (stream.result.finish_reason, stream.result.token_ids) == (whole.finish_reason, whole.token_ids)
    assert stream.result.chunks == whole.chunks
    other_seed = engine.generate(PROMPT, max_new_tokens=24, **options | {"seed": 10})
    assert (other_seed.text == whole.text) == (not options)


def test_messages_equal_their_rendered_prompt(engine: SamKVEngine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    rendered = engine.apply_chat_template(messages)
    assert rendered.text.endswith("<|assistant|>\n")
    by_messages, by_text = engine.generate(messages, max_new_tokens=8), engine.generate(rendered, max_new_tokens=8)
    assert by_messages.token_ids == by_text.token_ids
    assert by_messages.metrics.chunks_hit == 4


def test_stop_strings_end_the_answer_and_are_not_in_it(engine: SamKVEngine) -> None:
    free = engine.generate(PROMPT, max_new_tokens=24)
    stop = free.text[len(free.text) // 2 :][:3]
    stopped = engine.generate(PROMPT, max_new_tokens=24, stop=[stop, "never met"])
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert engine.generate(PROMPT, max_new_tokens=24, stop=stop).text == stopped.text


def test_the_finish_reason_is_length_or_end_of_text(engine: SamKVEngine) -> None:
    assert engine.generate(PROMPT, max_new_tokens=3).finish_reason == "length"
    engine._end_ids = frozenset(range(tiny.VOCAB_SIZE))
    ended = engine.generate(PROMPT, max_new_tokens=3)
    assert (ended.finish_reason, ended.text, ended.metrics.completion_tokens) == ("stop", "", 0)


def test_an_announced_chunk_is_computed_on_the_spot_and_stored(make_engine: MakeEngine) -> None:
    engine, prepared = make_engine(), make_engine(chunks=CHUNKS)
    engine.announce(CHUNKS)
    first = engine.generate(PROMPT, max_new_tokens=8)
    assert (first.metrics.chunks_hit, first.metrics.chunks_missed) == (0, 4)
    second = engine.generate(PROMPT, max_new_tokens=8)
    assert (second.metrics.chunks_hit, second.metrics.chunks_missed) == (4, 0)
    assert first.token_ids == second.token_ids == prepared.generate(PROMPT, max_new_tokens=8).token_ids


def test_a_chunk_that_is_announced_with_other_words_around_it_is_that_chunk(engine: SamKVEngine) -> None:
    """Knowledge graphs put facts before a chunk's text, other ones for every question."""
    for question in range(3):
        decorated = f"Fact {question}: the tide turns.\n\n{CHUNKS[0]}"
        engine.announce([decorated])
        metrics = engine.generate(f"{decorated}\n\nWhich tide?", max_new_tokens=1).metrics
        assert (metrics.chunks_hit, metrics.chunks_missed) == (1, 0)
    assert not engine.has_chunk(decorated)
    engine.announce([whole := f"{tiny.text(77)} {tiny.text(78)} {CHUNKS[0]}"])
    assert engine.generate(f"{whole}\n\nWhich tide?", max_new_tokens=1).metrics.chunks_missed == 1, "mostly new"


def test_unused_announcements_are_forgotten_and_stored_chunks_are_not(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samkv_rag.ingestion.library._MAX_REMEMBERED", 10)
    engine.announce(tiny.text(1000 + i) for i in range(50))
    engine.announce(CHUNKS)
    assert len(engine._library._announced) == 10
    assert engine.generate(PROMPT, max_new_tokens=1).metrics.chunks_hit == 4


def test_chunks_may_stand_anywhere(engine: SamKVEngine) -> None:
    for prompt in (f"{CHUNKS[2]}{CHUNKS[0]}?", f"{CHUNKS[0]} and {CHUNKS[0]} again?", f"a {CHUNKS[3]} b {CHUNKS[1]} c"):
        kept = engine.generate(prompt, max_new_tokens=6, method=tiny.method(sequence_ratio=1.0))
        assert kept.metrics.chunks_hit == 2
        assert kept.token_ids == engine.generate(prompt, max_new_tokens=6, method="full_prefill").token_ids


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "it must be text that is not only white space"),
        (" \n", "it must be text that is not only white space"),
        ([], "it must be text that is not only white space"),
        *((wrong, "it must be text or a list of messages") for wrong in (3, None, b"bytes", ["text"])),
        ("half a pair: \ud800", r"the text holds half a surrogate pair \('\\ud800'\) at character"),
        ([{"role": "user", "content": "\udfff"}], r"the text holds half a surrogate pair \('\\udfff'\) at character"),
    ],
)
def test_a_wrong_prompt_is_refused(engine: SamKVEngine, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        engine.generate(prompt)


def test_other_wrong_arguments_are_refused(engine: SamKVEngine) -> None:
    for wrong, message in ((3, "the text is a int"), ("\ud800", r"half a surrogate pair \('\\ud800'\) at character 0")):
        with pytest.raises(PromptError, match=message):
            engine.tokenize(wrong)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="the messages are 'x'; they must be a list of mappings"):
        engine.apply_chat_template("x")  # type: ignore[arg-type]
    with pytest.raises(EmptyChunkError, match="chunk 1 is None"):
        engine.rank("Who?", [CHUNKS[0], None])  # type: ignore[list-item]
    for wrong, message in (("", "is not a name"), (3, "source 3 is not a name"), ("\ud800", "is not valid Unicode")):
        with pytest.raises(ConfigurationError, match=message):
            engine.remove_sources([wrong])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="choose is 3; it must be a function"):
        engine.generate(PROMPT, choose=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="it must be an EngineConfig"):
        SamKVEngine(engine.decoder.model, engine.tokenizer.tokenizer, config={"block_tokens": 4})  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["announce", "remove_chunks", "prune", "add_chunks"])
def test_a_chunk_that_is_not_text_is_refused_everywhere(engine: SamKVEngine, call: str) -> None:
    with pytest.raises(EmptyChunkError, match="chunk 0 is None; it must be text"):
        getattr(engine, call)([None])
    with pytest.raises(ConfigurationError, match="3 is not a list of texts"):
        getattr(engine, call)(3)
    with pytest.raises(EmptyChunkError, match="chunk 0 is None"):
        engine.has_chunk(None)  # type: ignore[arg-type]
    assert all(map(engine.has_chunk, CHUNKS))


def test_one_text_is_a_list_of_it(engine: SamKVEngine) -> None:
    assert engine.announce(CHUNKS[0]).digests == engine.announce([CHUNKS[0]]).digests
    assert engine.prune(CHUNKS[0]) == 3
    assert [engine.has_chunk(chunk) for chunk in CHUNKS] == [True, False, False, False]
    assert engine.generate(PROMPT, max_new_tokens=1).metrics.chunks_total == 1
    engine.add_chunks(CHUNKS[0], sources=["a"])
    assert (engine.remove_sources("a", keep_texts=CHUNKS[0]), engine.sources()) == (0, ["a"])
    assert engine.remove_chunks(CHUNKS[0]) == 1


def test_an_answer_ends_at_the_context_window(engine: SamKVEngine) -> None:
    prompt = tiny.text(5, num_words=20)
    room = engine.context_window - len(engine._assembler.without_cache(engine._assembler.split(prompt)).token_ids)
    engine.decoder.context_window -= room - 3
    result = engine.generate(prompt, max_new_tokens=50)
    assert (len(result.token_ids), result.finish_reason) == (3, "length")


def test_messages_that_the_template_refuses(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.tokenizer.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ChatTemplateError, match=r"refused 1 message.*roles must alternate"):
        engine.generate([{"role": "user", "content": "hello"}])
    monkeypatch.setattr(engine.tokenizer.tokenizer, "chat_template", None)
    with pytest.raises(ChatTemplateError, match="no chat template; pass the prompt as one string"):
        engine.generate([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic'; it must be a PrefillMethod"),
        ({"method": "skout"}, "did you mean 'scout'"),
        ({"method": {"name": "scout", "sequence_ration": 1}}, "sequence_ration; did you mean sequence_ratio"),
        ({"method": {"name": "scout", "sequence_ratio": 0}}, "sequence_ratio is 0; it must be a number from"),
        ({"method": {"name": "scout", "sequence_ratio": 1.5}}, "sequence_ratio is 1.5; .* from 1e-06 to 1"),
        ({"temperature": -1}, "temperature is -1; it must be a number of at least 0"),
        ({"temperature": 1e-45}, "it must be 0 .greedy. or at least 0.001"),
        ({"temperature": 10**400}, "temperature is 10+; it must be a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0; it must be above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be an integer of at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True; it must be an integer"),
        ({"seed": "seven"}, "seed is 'seven'; it must be an integer"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be an integer"),
        ({"stop": [""]}, "it must be made of texts that are not empty"),
        ({"stop": [3]}, "it must be made of texts that are not empty"),
        ({"stop": 3}, "3 is not a list of texts"),
        ({"top_k": -1}, "top_k is -1"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "it must be a number from 0.01 to 100"),
        ({"n": 0}, "n is 0"),
        ({"logprobs": 5}, "logprobs is 5; it must be True or False"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
        ({"top_logprobs": 2}, "pass logprobs=True"),
        ({"grammar": "a+"}, "it must be a Grammar, such as"),
        ({"max_tokens": 3}, "did you mean max_new_tokens"),
        ({"seed": 2**64 - 1, "n": 2}, "seed is"),
    ],
)
def test_wrong_options_are_refused_at_once(engine: SamKVEngine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        engine.stream(PROMPT, **options)


def opened(**options: Any) -> SamKVEngine:
    return SamKVEngine.from_pretrained(tiny.model(), **({"tokenizer": tiny.tokenizer()} | options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EngineConfig(block_tokens=0), "block_tokens is 0; it must be an integer of at least 1"),
        (lambda: EngineConfig(storage="half"), "storage is 'half'; it must be one of"),  # type: ignore[arg-type]
        (lambda: Scout(recompute=1), "recompute is 1; it must be True or False"),
        (lambda: Scout(score_layers=(0.9, 0.1)), "score_layers is"),
        (lambda: Scout(score_layers=("a", "b")), "score_layers is"),  # type: ignore[arg-type]
        (lambda: resolve_method({"name": ["scout"]}), "method is"),
        (lambda: Scout(refresh_tokens=0), "refresh_tokens is 0"),
        (lambda: opened(tokenizer=None), "needs its tokenizer"),
        (lambda: opened(dtype="float32"), "dtype: for a model given by name"),
        (lambda: opened(device="cpu", dtyp="float32"), "dtyp; did you mean dtype"),
    ],
)
def test_wrong_options_are_refused_where_they_are_given(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no causal language model could be loaded from"):
        SamKVEngine.from_pretrained(str(tmp_path / "nothing"))


def test_a_saved_model_is_loaded_from_its_folder(tmp_path: Path) -> None:
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    engine = SamKVEngine.from_pretrained(tmp_path, device="cpu", dtype="float32", store=tmp_path / "store")
    assert engine.model_name == str(tmp_path)
    assert engine.add_chunks(CHUNKS).num_added == 4
