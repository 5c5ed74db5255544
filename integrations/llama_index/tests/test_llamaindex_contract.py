"""The fake engine of these tests does what the real one does, as far as the integration relies on it."""

from __future__ import annotations

from typing import Any

import pytest

CHUNK = "The lamp of the lighthouse turns once a minute."
PROMPT = f"Context: {CHUNK}\nQuestion: How often does it turn?"
MESSAGES = [{"role": "system", "content": CHUNK}, {"role": "user", "content": "How often?"}]


@pytest.fixture(params=["fake_engine", "tiny_engine"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def test_chunks_come_and_go(engine: Any) -> None:
    report = engine.add_chunks([CHUNK, f" {CHUNK}\n"], show_progress=False)
    assert (report.num_added, report.num_skipped, engine.has_chunk(CHUNK)) == (1, 0, True)
    assert engine.add_chunks([CHUNK]).num_added == 0
    assert engine.prune([f"{CHUNK}\n"]) == 0
    assert engine.prune([]) == 1
    assert not engine.has_chunk(CHUNK)


def test_chunks_go_with_their_last_source(engine: Any) -> None:
    other = "The keeper of the lighthouse rests on Sundays."
    engine.add_chunks([CHUNK, CHUNK, other], sources=["a", "b", None])
    assert sorted(engine.sources()) == ["a", "b"]
    engine.add_chunks([other], sources=["a"])
    assert engine.remove_sources(["b", "unknown"]) == 1
    assert (engine.has_chunk(CHUNK), engine.has_chunk(other), engine.sources()) == (False, True, ["a"])
    engine.add_chunks([CHUNK], sources=["a"])
    assert not engine.has_chunk(other)


def test_texts_can_be_spared_when_sources_go(engine: Any) -> None:
    other, spare = "The keeper of the lighthouse rests on Sundays.", "No boat lands on the island before March."
    engine.add_chunks([CHUNK, CHUNK, other, spare], sources=["a", "b", "c", None])
    assert engine.remove_sources(["a"], keep_texts=[CHUNK]) == 0
    assert sorted(engine.sources()) == ["b", "c"]
    assert engine.remove_sources(["b", "c"], keep_texts=[f"{CHUNK} "]) == 1
    assert engine.sources() == ["b"]
    engine.add_chunks([other])
    assert engine.prune([other], unreferenced_only=True) == 1
    assert [engine.has_chunk(text) for text in (CHUNK, other, spare)] == [True, True, False]


@pytest.mark.parametrize("prompt", [PROMPT, MESSAGES], ids=["text", "messages"])
def test_a_stream_ends_with_the_figures_and_equals_generate(engine: Any, prompt: Any) -> None:
    engine.add_chunks([CHUNK])
    stream = engine.stream(prompt, max_new_tokens=4, temperature=0.0, top_p=1.0, stop=None, seed=None)
    text = "".join(piece.text for piece in stream)
    assert stream.result.finish_reason in ("stop", "length")
    assert stream.result.metrics.completion_tokens <= 4 and stream.result.metrics.chunks_hit == 1
    assert engine.generate(prompt, max_new_tokens=4).text == stream.result.text == text


def test_announced_chunks_are_recognised_and_stored(engine: Any) -> None:
    engine.announce([CHUNK])
    assert engine.generate(PROMPT, max_new_tokens=1).metrics.chunks_missed == 1
    assert engine.generate(PROMPT, max_new_tokens=1).metrics.chunks_hit == 1


def test_a_stream_can_be_closed_early(engine: Any) -> None:
    stream = engine.stream(PROMPT, max_new_tokens=4)
    next(iter(stream))
    stream.close()


def test_describes_the_model(engine: Any) -> None:
    assert engine.context_window > 1000 and engine.has_chat_template
    assert isinstance(engine.model_name, str) and engine.method.to_dict()
    assert engine.count_tokens(PROMPT) == len(engine.tokenize(PROMPT)) > 0
