"""Each control differs from its method in one thing only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evaluating import Answered, LetterEmbedder, Options, lines_of, write_cases

from samkv_apps.evaluate import EvaluationOptions, evaluate, read_predictions
from samkv_apps.evaluate.answering import Answerer
from samkv_apps.evaluate.compressors import COMPRESSORS, FewerChunks
from samkv_apps.evaluate.controls import RandomTokens, answer_retained, retained_texts, spans_as_text
from samkv_apps.evaluate.datasets import Case, load_cases
from samkv_apps.evaluate.options import FULL, Task
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.records import Prediction
from samkv_rag import SamKVEngine
from samkv_rag.generation_result import GenerationResult
from samkv_rag.prefill import Scout
from support import tiny

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 30), (2, 90), (3, 12), (4, 60))]


@pytest.fixture(autouse=True)
def no_embedding_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMPRESSORS, "fewer_chunks", lambda engine: FewerChunks(engine, LetterEmbedder()))


@pytest.fixture
def engine(tiny_engine: SamKVEngine) -> SamKVEngine:
    tiny_engine.add_chunks(CHUNKS)
    return tiny_engine


def answer(engine: SamKVEngine, method: Scout, question: str = "Which tide?") -> GenerationResult:
    return engine.generate(tiny.rag_prompt(CHUNKS, question), method=method, max_new_tokens=1)


def test_random_tokens_are_scouts_in_all_but_the_blocks(engine: SamKVEngine) -> None:
    options: dict[str, Any] = {"sequence_ratio": 0.3, "min_chunk_tokens": 0}
    scout, drawn, again, other = (
        answer(engine, Scout(**options)),
        answer(engine, RandomTokens(**options)),
        answer(engine, RandomTokens(**options)),
        answer(engine, RandomTokens(**options), "Which lantern?"),
    )
    kept = [[set(use.retained_tokens) for use in result.chunks] for result in (scout, drawn, again, other)]
    assert len({sum(map(len, sets)) for sets in kept}) == 1, "the budget is the same"
    assert all({0, 1, 2, 3} <= chunk for sets in kept for chunk in sets), "so are the anchors"
    assert kept[1] == kept[2]
    assert kept[0] != kept[1] != kept[3]
    assert drawn.metrics.recompute_ratio == scout.metrics.recompute_ratio


def test_no_context_is_the_prompt_without_chunks(options: Options, engine: SamKVEngine, tmp_path: Path) -> None:
    evaluate(options(methods=["no_context"], limit=1))
    full, none = lines_of(tmp_path / "out")
    messages = build_messages("Which tide?", [])
    expected = engine.generate_scored(messages, "seven winters", max_new_tokens=4, stop="\n", method="full_prefill")
    assert none["gold_nll"] == pytest.approx(expected.reference_nll)
    assert none["prediction"] == expected.text.strip()
    assert (none["ratio"], none["sequence_ratio"], none["supporting_recall"]) == (None, 0.0, 0.0)
    assert none["kv_bytes_resident"] < full["kv_bytes_resident"] == none["kv_bytes_full"]


def test_spans_are_what_scout_retains_and_nothing_else(engine: SamKVEngine, options: Options, tmp_path: Path) -> None:
    result = answer(engine, Scout(sequence_ratio=0.3, min_chunk_tokens=0))
    texts = spans_as_text(result)
    for text, chunk in zip(texts, CHUNKS, strict=True):
        rest = chunk
        for run in text.split(" … "):
            before, found, rest = rest.partition(run)
            assert found and (before or chunk.startswith(run)), "runs stand in the chunk's order, apart"
    num_retained = sum(len(use.retained_tokens) for use in result.chunks)
    num_runs = sum(text.count(" … ") for text in texts)
    assert abs(sum(map(engine.count_tokens, texts)) - num_retained) <= 6 * num_runs + 4 * len(texts)

    evaluate(options(methods=["scout", "spans_as_text"], limit=1))
    _, scout, spans = lines_of(tmp_path / "out")
    assert spans["recompute_ratio"] == spans["sequence_ratio"] > 0.8 * scout["sequence_ratio"]
    assert spans["gold_nll"] != scout["gold_nll"]
    assert "select" not in spans["phase_s"]


class Timed(Answerer):
    """An answerer whose prompts take ``seconds_of`` their texts."""

    def __init__(self, engine: SamKVEngine, options: EvaluationOptions, seconds_of: Callable[[Sequence[str]], float]):
        super().__init__(engine, options)
        self.seconds_of = seconds_of
        self.tried: list[list[str]] = []

    def _generate(self, case: Case, task: Task, texts: Sequence[str], max_new_tokens: int = 1) -> Any:
        self.tried.append(list(texts))
        return SimpleNamespace(metrics=SimpleNamespace(ttft_s=self.seconds_of(texts)))


@pytest.fixture
def full(options: Options, tmp_path: Path) -> Prediction:
    """Full prefill's answer to the first case: 1000 seconds for the chunks and 100 other tokens."""
    evaluate(options(methods=["full_prefill"], limit=1, output_dir=tmp_path / "full"))
    (made,) = read_predictions(tmp_path / "full")
    return replace(made, ttft_s=1000.0, prompt_tokens=made.chunk_tokens + 100)


@pytest.mark.parametrize("slower", [1.0, 1.5, 0.7])
def test_fewer_chunks_take_scouts_time(engine: SamKVEngine, options: Options, full: Prediction, slower: float) -> None:
    """A token takes ``slower`` times as long as in the whole prompt, which one trial reveals."""
    (case,) = load_cases(options().data[0], limit=1)
    token_s = slower * full.ttft_s / full.prompt_tokens

    def seconds(texts: Sequence[str]) -> float:
        return token_s * (100 + sum(map(engine.count_tokens, texts)))

    timed = Timed(engine, options(), seconds)
    lengths = sorted(map(engine.count_tokens, case.chunks))
    for wanted in (token_s * (100 + sum(lengths[1:])), token_s * (100 + lengths[-1])):
        texts, _ = timed._in_time(case, full, wanted)
        assert seconds(texts) <= wanted
        left = [chunk for chunk in case.chunks if chunk not in texts]
        assert all(seconds([*texts, chunk]) > 0.98 * wanted for chunk in left), "no other chunk fits in the time"
    assert len(timed.tried) == 2, "one trial each"


def test_scout_runs_before_what_gets_its_time(options: Options, answered: Answered, tmp_path: Path) -> None:
    metrics = evaluate(options(methods=["fewer_chunks_same_ttft", "naive_reuse"], sequence_ratios=[0.3, 0.6]))
    assert {run.method for run in metrics.runs} == {"full_prefill", "scout", "naive_reuse", "fewer_chunks_same_ttft"}
    for case in ("case-0", "case-1", "case-2"):
        order = [(method, ratio) for name, method, ratio in answered[-18:] if name == case]
        assert order[0] == ("full_prefill", None)
        assert {method for method, _ in order[-2:]} == {"fewer_chunks_same_ttft"}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "fewer_chunks_same_ttft: full prefill of the chunks nearest to the question" in report


@pytest.mark.parametrize(("trial_s", "num_chunks"), [(500.0, 6), (1000.0, 6), (2000.0, 3), (90_000.0, 1)])
def test_more_chunks_take_full_prefills_time(
    engine: SamKVEngine, options: Options, full: Prediction, trial_s: float, num_chunks: int
) -> None:
    asked = options(methods=["more_chunks"], corpus=True, retriever="bm25", top_k=2, more_top_k=6, order="best_last")
    case = Case("1", "Which tide?", ("ebb",), ("a", "b"), None, more=tuple("abcdef"))
    timed = Timed(engine, asked, lambda texts: trial_s)
    answers: list[Sequence[str]] = []
    timed._answer = lambda data, case, task, texts: answers.append(texts) or full  # type: ignore[func-returns-value,method-assign]
    timed.answer("tides", case, Task("more_chunks", 0.1), {FULL: full})
    assert timed.tried == [list("fedcba")], "tried once, with all"
    assert answers == [list("abcdef"[:num_chunks][::-1])], "the best stay, in the prompt's order"


def test_more_chunks_of_a_corpus_from_end_to_end(options: Options, tmp_path: Path) -> None:
    evaluate(options(methods=["more_chunks"], corpus=True, retriever="bm25", top_k=2, more_top_k=6, limit=1))
    full, more = lines_of(tmp_path / "out")
    assert 0 < more["sequence_ratio"] <= 0.4
    assert more["kv_bytes_full"] == full["kv_bytes_full"]


def test_an_answer_is_retained_where_it_stands_whole(engine: SamKVEngine) -> None:
    answers, chunks = ["ebb", "slack water"], ["The ebb of winter", "…"]
    cases = (([["the Ebb of", "winter"]], 1), ([["the eb", "b of"]], 0), ([["slack water"], []], 1), ([], 0))
    for retained, expected in cases:
        assert answer_retained(answers, retained, chunks) == expected
        assert answer_retained(answers, retained, ["flood"]) is None, "it stands in no chunk"
    result = engine.generate(tiny.rag_prompt(CHUNKS), method="full_prefill", max_new_tokens=1)
    assert ["".join(runs).strip() for runs in retained_texts(result)] == CHUNKS, "full prefill retains everything"


def test_evidence_and_what_full_prefill_answers_are_columns(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_cases(tmp_path / "tides.jsonl", answers=["Record 1"], supporting=["Record 1"])
    made = evaluate(options(data=[data], methods=["scout", "no_context"]))
    assert [run.answer_retained for run in made.runs] == [1.0, 0.0, 1.0]
    assert (made.runs[0].n_full_right, made.runs[0].recall_full_right) == (0, None)

    monkeypatch.setattr("samkv_apps.evaluate.answering.answer_recall", lambda text, answers: float(len(text) % 2))
    made = evaluate(options(data=[data], methods=["scout"], output_dir=tmp_path / "more"))
    full = made.runs[0]
    right = [line for line in lines_of(tmp_path / "more") if line["method"] == "full_prefill" and line["recall"] == 1]
    assert full.n_full_right == len(right) == made.runs[1].n_full_right > 0
    assert full.recall_full_right == 1.0
    report = (tmp_path / "more" / "report.md").read_text()
    assert "| support kept | answer kept | recall, full right | F1, full right |" in report
