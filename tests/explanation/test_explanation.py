"""Explanations agree with what the engine retained, and with the texts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from samkv_rag import Explanation, GenerationResult, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.explanation import Span
from samkv_rag.model.decoder import Decoder
from samkv_rag.prefill import Scout
from samkv_rag.prompt.layout import PromptLayout
from support import explaining, tiny
from support.engines import MakeEngine

BIRDS = "A gull 🐦🐦 and a café — 東京タワー.\n\n\ttabs  and   spaces\u0301 <b>&amp;</b>"
CHUNKS = [tiny.text(1), BIRDS, tiny.text(3, 90)]


def explain(engine: SamKVEngine, prompt: Any = None, method: str = "scout", **options: Any) -> Explanation:
    engine.add_chunks(CHUNKS)
    given = prompt or tiny.rag_prompt(CHUNKS)
    return engine.generate(given, max_new_tokens=4, method=tiny.method(method, **options)).explain()


@pytest.fixture
def explained(tiny_engine: SamKVEngine) -> Explanation:
    return explain(tiny_engine, sequence_ratio=0.4)


def test_it_equals_what_the_engine_retained(tiny_engine: SamKVEngine, explained: Explanation) -> None:
    with tiny_engine.stream(
        tiny.rag_prompt(CHUNKS), max_new_tokens=4, method=tiny.method(sequence_ratio=0.4)
    ) as stream:
        list(stream)
    result = stream.result
    assert result.explain() == explained
    assert repr(explained) == (
        f"<Explanation: {explained.num_retained} of {explained.num_tokens} tokens retained of 3 chunks>"
    ), "it does not show the documents"
    assert Explanation.from_dict(json.loads(json.dumps(explained.to_dict(), allow_nan=False))) == explained
    assert (explained.answer, explained.method, explained.fallback_reason) == (result.text, "scout", None)
    assert explained.sequence_ratio == pytest.approx(explained.num_retained / explained.num_tokens)
    assert [chunk.text for chunk in explained.chunks] == CHUNKS
    for chunk, use in zip(explained.chunks, result.chunks, strict=True):
        assert [i for run in chunk.retained for i in range(run.start, run.stop)] == list(use.retained_tokens)
        assert all(before.stop < run.start for before, run in pairwise(chunk.retained))
        assert (chunk.digest, chunk.num_retained) == (use.digest, len(use.retained_tokens))
        offsets = tiny_engine.tokenizer.chunk_offsets(chunk.text)
        for run in (*chunk.retained, *chunk.blocks):
            assert (run.start_char, run.stop_char) == (offsets[run.start][0], offsets[run.stop - 1][1])
        assert chunk.num_tokens == use.num_tokens == tiny_engine.count_tokens(chunk.text)


def test_it_shows_what_each_refresh_added(tiny_engine: SamKVEngine) -> None:
    tiny_engine.add_chunks(CHUNKS)
    ids = iter(tiny_engine.tokenize("the tide of winter and the seven letters"))
    options: dict[str, Any] = {"max_new_tokens": 8, "method": tiny.method(sequence_ratio=0.3, refresh_tokens=3)}
    result = tiny_engine.generate(tiny.rag_prompt(CHUNKS), choose=lambda logits: next(ids), **options)
    explained = result.explain()
    for chunk, use in zip(explained.chunks, result.chunks, strict=True):
        tokens = [(arrival.answer_chars, token) for arrival in use.arrivals for token in arrival.tokens]
        assert [(run.answer_chars, i) for run in chunk.arrivals for i in range(run.start, run.stop)] == tokens
    (first, *_) = (run for chunk in explained.chunks for run in chunk.arrivals)
    assert 0 < first.answer_chars < len(result.text)
    assert Explanation.from_dict(json.loads(json.dumps(explained.to_dict()))) == explained
    assert f"Read after “…{result.text[: first.answer_chars]}”: “" in explained.to_html()


def test_scores_are_those_of_the_selection(tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's score is the mean of its four highest token scores. The best blocks were retained."""
    seen: list[tuple[PromptLayout, list[float]]] = []
    score_tokens = Scout.score_tokens

    def watched(self: Scout, decoder: Decoder, layout: PromptLayout, over_anchors: bool) -> Any:
        scores, text = score_tokens(self, decoder, layout, over_anchors)
        seen.append((layout, scores.tolist()))
        return scores, text

    monkeypatch.setattr(Scout, "score_tokens", watched)
    explained = explain(tiny_engine, sequence_ratio=0.4, placement="prompt", sentence_credit=0.0)
    ((layout, scores),) = seen
    whole: list[float] = []
    dropped: list[float] = []
    for chunk, segment in zip(explained.chunks, layout.chunks, strict=True):
        bounds = [(block.start, block.stop) for block in chunk.blocks]
        assert bounds[0][0] <= Scout.initial_tokens
        assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))
        assert bounds[-1][1] == chunk.num_tokens
        assert {stop - start for start, stop in bounds[:-1]} <= {Scout.block_tokens}
        retained = {i for run in chunk.retained for i in range(run.start, run.stop)}
        for block in chunk.blocks:
            of_tokens = sorted(scores[segment.start + block.start : segment.start + block.stop], reverse=True)
            assert block.score == pytest.approx(sum(of_tokens[:4]) / 4, rel=1e-5)
            inside = retained & {*range(block.start, block.stop)}
            (dropped if not inside else whole if len(inside) == block.stop - block.start else []).append(block.score)
    assert min(whole) >= max(dropped)


@pytest.mark.parametrize("method", ["full_prefill", "naive_reuse", "epic", "cacheblend", "prophetkv"])
def test_methods_that_retain_everything_score_nothing(tiny_engine: SamKVEngine, method: str) -> None:
    explained = explain(tiny_engine, method=method)
    assert explained.num_retained == explained.num_tokens
    for chunk in explained.chunks:
        assert not chunk.blocks
        (whole,) = chunk.retained
        assert (whole.start, whole.stop) == (0, chunk.num_tokens)
        assert chunk.text[whole.start_char : whole.stop_char].strip() == chunk.text.strip()


def test_blocks_outside_a_dynamic_share_have_no_score(make_engine: MakeEngine) -> None:
    engine = make_engine(method="samkv", preamble="")
    shares = [explain(engine, method="samkv", dynamic_share=share) for share in (True, False)]
    without = [[block.score for chunk in one.chunks for block in chunk.blocks].count(None) for one in shares]
    assert without[0] > 0
    assert without[1] == 0
    json.dumps(shares[0].to_dict(), allow_nan=False)


def test_a_fallback_is_reported(tiny_engine: SamKVEngine) -> None:
    explained = explain(tiny_engine, min_chunk_tokens=100_000)
    assert explained.method == "full_prefill"
    assert "min_chunk_tokens" in (explained.fallback_reason or "")


def test_a_chunk_that_begins_the_prompt(tiny_engine: SamKVEngine) -> None:
    """Full prefill counts the BOS among its tokens; the text's tokens keep their places."""
    for method in ("full_prefill", "scout"):
        (chunk,) = explain(tiny_engine, f"{CHUNKS[0]}\n\nWhat is it?", method).chunks
        assert chunk.text == CHUNKS[0]
        assert all(CHUNKS[0][run.start_char : run.stop_char] for run in chunk.retained)


QUESTION = "What </s> is recorded?"


@pytest.mark.parametrize(
    "prompt",
    [
        [{"role": "user", "content": "\n\n".join([*CHUNKS, QUESTION])}],
        [{"role": "user", "content": "\n\n".join([QUESTION, *CHUNKS])}],
        [{"role": "system", "content": "\n\n".join(CHUNKS)}, {"role": "user", "content": QUESTION}],
        [{"role": "system", "content": "\n\n".join([*CHUNKS, "Be brief."])}, {"role": "user", "content": QUESTION}],
        [{"role": "user", "content": QUESTION}],
        "\n\n".join([*CHUNKS, QUESTION]),
        QUESTION,
    ],
    ids=["behind the chunks", "before them", "apart from them", "apart from others", "alone", "in a text", "as a text"],
)
def test_the_question_is_what_was_asked(tiny_engine: SamKVEngine, prompt: Any) -> None:
    assert explain(tiny_engine, prompt).question == QUESTION


@pytest.mark.parametrize("values", [{}, {"chunks": 3}, {"chunks": [{}]}, {"chunks": [], "other": 1}, {"chunks": None}])
def test_what_is_not_an_explanation_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="explain=True"):
        Explanation.from_dict(values)


def test_sources_are_matched_by_text(explained: Explanation) -> None:
    named = explained.with_sources({f"\n{CHUNKS[0]} ": "one.md", CHUNKS[2]: "three.md", "unknown": "no.md"})
    assert [chunk.source for chunk in named.chunks] == ["one.md", "", "three.md"]
    assert replace(named, chunks=explained.chunks) == explained
    assert named.with_sources({}) == named


def test_answering_imports_neither_the_explanation_nor_its_templates() -> None:
    code = (
        "import sys; from support import tiny; from samkv_rag import SamKVEngine; "
        "engine = SamKVEngine(tiny.model('llama'), tiny.tokenizer()); "
        "result = engine.generate('What is it?', max_new_tokens=1); "
        "assert 'samkv_rag.explanation' not in sys.modules; result.explain(); "
        "assert 'samkv_rag.explanation.render' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env={"PYTHONPATH": ":".join(sys.path)})


def retained_characters(engine: SamKVEngine, result: GenerationResult) -> dict[str, set[int]]:
    """Every character of every token that was retained, or added later, computed the slow way."""
    found: dict[str, set[int]] = {}
    for use in result.chunks:
        offsets = engine.tokenizer.chunk_offsets(use.text)
        for token in (*use.retained_tokens, *(token for arrival in use.arrivals for token in arrival.tokens)):
            found.setdefault(use.text, set()).update(range(*offsets[token]))
    return found


@pytest.mark.parametrize("options", [{}, {"refresh_tokens": 2}])
def test_citations_are_the_characters_of_retained_tokens(tiny_engine: SamKVEngine, options: dict[str, Any]) -> None:
    tiny_engine.add_chunks(CHUNKS)
    method = tiny.method(sequence_ratio=0.4, **options)
    prompt = tiny.rag_prompt([*CHUNKS, CHUNKS[0]])
    result = tiny_engine.generate(prompt, max_new_tokens=6, method=method)
    sources = [f" \n\t{CHUNKS[0]}\n", *CHUNKS[1:], "A text that was not in the prompt."]
    cited = result.explain().cite(sources)
    assert cited[-1] == []
    for source, spans in zip(sources[:-1], cited, strict=False):
        ahead = len(source) - len(source.lstrip())
        characters = {i - ahead for span in spans for i in range(span.start_char, span.stop_char)}
        assert characters == retained_characters(tiny_engine, result)[source.strip()]
        in_order = sorted(spans)
        assert all(one.stop_char < other.start_char for one, other in pairwise(in_order)), "spans that touch are one"
        scores = [span.score for span in spans if span.score is not None]
        assert scores == sorted(scores, reverse=True)
        assert [span.score for span in spans][: len(scores)] == scores, "those without a score are last"


def test_a_span_scores_as_its_best_block() -> None:
    chunk = explaining.chunk(kept=((0, 2), (2, 9), (20, 22)), scores=(2.0, 5.0, None, None, 1.0, 9.0))
    anchors, first, last = chunk.retained
    assert explaining.explanation(chunk).cite([chunk.text]) == [
        [Span(anchors.start_char, first.stop_char, 5.0), Span(last.start_char, last.stop_char, 1.0)]
    ]
    (spans,) = explaining.whole().cite([explaining.PROSE])
    assert spans == [Span(0, len(explaining.PROSE), None)], "full prefill scores nothing"
