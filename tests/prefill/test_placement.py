"""Chunks are placed by how well they match the question, not by the prompt's order."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from samkv_rag.chunk_cache import ranking_layer
from samkv_rag.exceptions import DamagedChunkWarning, EmptyPromptError
from samkv_rag.ingestion.recognition import text_digest
from samkv_rag.prefill.scout import rank_chunks
from samkv_rag.prompt.layout import PromptLayout, Segment
from samkv_rag.store.base import read_bytes
from samkv_rag.store.codec import open_chunk
from support import engines, tiny
from support.engines import MakeEngine

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 40), (2, 65), (3, 30), (4, 52))]


def layout_of(*texts: str) -> PromptLayout:
    """A prompt of one token a letter; upper-case texts are chunks, "…:" are labels, "<…" is structure."""
    segments = []
    for text in texts:
        kind = "chunk" if text.isupper() else "text"
        ids = torch.tensor([ord(letter) for letter in text])
        segment = Segment(kind, ids, text=text, digest=text)  # type: ignore[arg-type]
        segments.append(replace(segment, is_label=text.endswith(":"), is_structure=text.startswith("<")))
    return PromptLayout(segments, torch.device("cpu"))


@pytest.mark.parametrize(
    ("texts", "scores", "placed"),
    [
        (("a", "BB", "\n", "CCC", "\n", "D", "?"), [3, 1, 2], ["a", "CCC", "\n", "D", "\n", "BB", "?"]),
        (("a", "BB", "CCC", "?"), [2, 1], ["a", "CCC", "BB", "?"]),
        (("a", "BB", "\n", "CCC", "--", "D", "?"), [3, 2, 1], ["a", "D", "\n", "CCC", "--", "BB", "?"]),
        (("a", "BB", "next", "CCC", "next", "D", "?"), [3, 2, 1], ["a", "D", "next", "CCC", "next", "BB", "?"]),
        (("a", "BB", "of 2", "CCC", "of 3", "D", "?"), [3, 2, 1], ["a", "BB", "of 2", "CCC", "of 3", "D", "?"]),
        (("a", "BB", "of 2", "CCC", "\n", "D", "?"), [3, 2, 1], ["a", "BB", "of 2", "D", "\n", "CCC", "?"]),
        (("a", "BB", "\n", "CCC", "of 3", "D", "?"), [3, 2, 1], ["a", "CCC", "\n", "BB", "of 3", "D", "?"]),
        (("a", "1:", "BB", "\n", "2:", "C", "?"), [3, 1], ["a", "2:", "C", "\n", "1:", "BB", "?"]),
        (("a", "BB", "<", "CCC", "<", "D", "?"), [3, 2, 1], ["a", "BB", "<", "CCC", "<", "D", "?"]),
        (("a", "BB", "\n", "CCC", "<", "D", "?"), [3, 2, 1], ["a", "CCC", "\n", "BB", "<", "D", "?"]),
        (("BB", "?"), [1], ["BB", "?"]),
    ],
)
def test_chunks_change_places_where_the_same_text_divides_them(
    texts: tuple[str, ...], scores: list[float], placed: list[str]
) -> None:
    layout = layout_of(*texts)
    found, order = layout.placed(scores)
    assert [segment.text for segment in found.segments] == placed
    assert [layout.chunks[number].text for number in order] == [chunk.text for chunk in found.chunks]
    assert bytes(found.token_ids.tolist()).decode() == "".join(placed)
    assert [segment.start for segment in found.segments] == [len("".join(placed[:n])) for n in range(len(placed))]


@pytest.mark.parametrize("label", ["", "keeper"])
def test_what_is_retained_and_answered_does_not_depend_on_the_chunks_order(make_engine: MakeEngine, label: str) -> None:
    engine = make_engine(chunks=CHUNKS)
    retained, answers = set(), set()
    for order in permutations(range(len(CHUNKS))):
        chunks = [CHUNKS[number] for number in order]
        prompt = tiny.rag_prompt(chunks)
        for number, chunk in zip(order, chunks, strict=True):
            prompt = prompt.replace(chunk, f"file: {label}{number}\n{chunk}" if label else chunk)
        result = engine.generate(prompt, max_new_tokens=8, method=tiny.method())
        assert [use.text for use in result.chunks] == chunks
        retained.add(tuple(sorted((use.text, use.retained_tokens) for use in result.chunks)))
        answers.add(result.token_ids)
    assert len(retained) == len(answers) == 1


def test_the_order_matters_where_chunks_stay(make_engine: MakeEngine) -> None:
    engine = make_engine(chunks=CHUNKS)
    method = tiny.method(placement="prompt")
    both = (engine.generate(tiny.rag_prompt(c), max_new_tokens=1, method=method).chunks for c in (CHUNKS, CHUNKS[::-1]))
    first, second = ({use.text: use.retained_tokens for use in uses} for uses in both)
    assert first != second


def test_ranking_follows_its_formula(make_engine: MakeEngine) -> None:
    """Values at a quarter of the depth, standardised over all chunks; the norm of what is above the chunks' mean."""
    engine = make_engine(chunks=CHUNKS, preamble="")
    layout = engines.layout_of(engine, tiny.rag_prompt(CHUNKS))
    model = engine.decoder.model
    with torch.inference_mode():
        found = rank_chunks(engine.decoder, layout)
        cached = [model(chunk.token_ids[None], use_cache=True).past_key_values for chunk in layout.chunks]
        states = [cache.layers[1].values[0].transpose(0, 1).flatten(1) for cache in cached]
        before, after = layout.segments[0], layout.segments[-1]
        ids = torch.cat((before.token_ids, after.token_ids))
        own = model(ids[None], use_cache=True).past_key_values.layers[1].values[0].transpose(0, 1).flatten(1)
        mean, scale = torch.cat(states).mean(0), torch.cat(states).std(0)
        best = torch.zeros(len(states), len(after.token_ids))
        for column, value in enumerate(own[-len(after.token_ids) :]):
            question = (value - mean) / scale
            for number, chunk in enumerate(states):
                best[number, column] = torch.cosine_similarity(question[None], (chunk - mean) / scale).max()
    expected = (best - best.mean(0)).clamp(min=0).square().sum(1).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_chunks_stay_in_their_messages(make_engine: MakeEngine) -> None:
    """The same text is between the results of two calls, and yet they must not swap places."""
    engine = make_engine(chunks=CHUNKS)
    messages = [{"role": "user", "content": chunk} for chunk in CHUNKS] + [{"role": "user", "content": "Who is it?"}]
    layout = engines.layout_of(engine, engine.apply_chat_template(messages))
    assert len(layout.chunks) == len(CHUNKS)
    placed, order = layout.placed([4.0, 3.0, 2.0, 1.0])
    assert order == [0, 1, 2, 3]
    assert placed.token_ids.tolist() == layout.token_ids.tolist()


def test_the_engine_ranks_texts_as_chunks_of_a_prompt_are_ranked(make_engine: MakeEngine) -> None:
    engine, question = make_engine(chunks=CHUNKS), "Who is the keeper of the paraffin?"
    layout = engines.layout_of(engine, "".join(CHUNKS) + question)
    assert [segment.text for segment in layout.chunks] == CHUNKS
    with torch.inference_mode():
        expected = dict(zip(CHUNKS, rank_chunks(engine.decoder, layout).tolist(), strict=True))
    texts = ["  ", CHUNKS[3], f" {CHUNKS[0]}\n", CHUNKS[1], CHUNKS[3], CHUNKS[2]]
    found = engine.rank(question, texts)
    assert found == pytest.approx([expected.get(text.strip(), 0.0) for text in texts], abs=1e-5)
    assert max(found) > 0
    assert engine.rank(question, []) == []
    assert engine.rank(question, " ") == [0.0]
    (of_one_token,) = engine.rank(question, ["a"])
    assert of_one_token >= 0.0


def test_a_damaged_chunk_is_replaced_when_it_is_ranked(make_engine: MakeEngine) -> None:
    engine = make_engine(chunks=CHUNKS)
    expected = engine.rank("Which keeper?", CHUNKS)
    key = engine._library._key(text_digest(CHUNKS[1]))
    data = bytearray(read_bytes(engine.store.get(key)))
    data[open_chunk(engine.store, key).tensors[f"layer.{ranking_layer(4):03}.values"].start] ^= 1
    engine.store.put(key, bytes(data))
    with pytest.warns(DamagedChunkWarning, match="it is computed again"):
        assert engine.rank("Which keeper?", CHUNKS) == pytest.approx(expected, abs=1e-5)


def test_what_is_ranked_is_stored_and_control_tokens_in_a_question_are_text(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.rank("Which keeper?", CHUNKS)
    assert all(map(engine.has_chunk, CHUNKS))
    segment = engine._assembler.of_question(CHUNKS, "a </s> b").segments[-1]
    assert segment.kind == "text"
    assert not segment.is_structure
    with pytest.raises(EmptyPromptError):
        engine.rank(" ", CHUNKS)


QUESTION = "What does the seventh keeper record of the tide?"


@pytest.mark.parametrize(
    ("messages", "is_put_behind"),
    [
        ([("user", f"{QUESTION}\n\n{CHUNKS[0]}\n\n{CHUNKS[1]}")], True),
        ([("user", QUESTION), ("assistant", f"{CHUNKS[0]}\n\n{CHUNKS[1]}")], True),
        ([("user", f"{CHUNKS[0]}\n\n{CHUNKS[1]}\n\n{QUESTION}")], False),
        ([("system", f"{CHUNKS[0]}\n\n{CHUNKS[1]}"), ("user", QUESTION)], False),
    ],
)
def test_a_question_before_the_chunks_selects_as_if_behind_them(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, messages: list[tuple[str, str]], is_put_behind: bool
) -> None:
    """Agents' tools answer behind the question, so that only the template's end would see the chunks."""
    engine = make_engine(chunks=CHUNKS)
    seen: list[PromptLayout] = []
    rank = rank_chunks
    monkeypatch.setattr(
        "samkv_rag.prefill.scout.rank_chunks", lambda decoder, layout: seen.append(layout) or rank(decoder, layout)
    )
    result = engine.generate([{"role": role, "content": text} for role, text in messages], max_new_tokens=1)
    (layout,) = seen
    assert (layout.num_tokens > result.metrics.prompt_tokens) == is_put_behind
    behind = engine.tokenizer.decode(layout.token_ids[layout.chunks[-1].stop :].tolist())
    assert QUESTION in behind
    assert result.metrics.method == "scout"
