"""Scores, intervals, case files, and the likelihood of an answer against transformers' own forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from samkv_apps.evaluate.datasets import load_cases
from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.scoring import exact_match, f1, normalise
from samkv_apps.evaluate.statistics import bootstrap_interval
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prefill import FullPrefill, PrefillMethod
from support import tiny

CHUNKS = [tiny.text(seed) for seed in range(3)]
SEGMENTS = ["Passages:\n\n", CHUNKS[0], "\n\n", CHUNKS[1], "\n\n", CHUNKS[2], "\n\nQuestion: Which tide?\nAnswer:"]


# -- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Tide.", "tide"),
        ("  a\tlantern,  AN  island ", "lantern island"),
        ("U.S.A.", "usa"),
        ("theatre and another", "theatre and another"),
        ("well-known", "wellknown"),
        ("Åse's", "åses"),
    ],
)
def test_normalisation_is_squads(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected_f1", "expected_em"),
    [
        ("American", ["American"], 1.0, 1.0),
        ("the american!", ["American"], 1.0, 1.0),
        ("American writer", ["American"], 2 / 3, 0.0),
        ("", ["American"], 0.0, 0.0),
        ("The", ["a"], 1.0, 1.0),
        ("tide", ["lantern"], 0.0, 0.0),
        ("tide tide", ["tide"], 2 / 3, 0.0),
        ("north stone", ["stone", "north stone island", "stone north"], 1.0, 0.0),
        ("stone", ["lantern", "Stone"], 1.0, 1.0),
    ],
)
def test_scores_take_the_best_answer(
    prediction: str, answers: list[str], expected_f1: float, expected_em: float
) -> None:
    assert f1(prediction, answers) == pytest.approx(expected_f1)
    assert exact_match(prediction, answers) == expected_em


# -- intervals -------------------------------------------------------------------------------------


def test_interval_excludes_zero_where_differences_are_shifted_and_covers_it_where_not() -> None:
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0)).tolist()
    centred = [value - sum(noise) / len(noise) for value in noise]
    low, high = bootstrap_interval(centred, seed=1)
    assert low < 0 < high
    shifted_low, shifted_high = bootstrap_interval([value + 1 for value in centred], seed=1)
    assert 0 < shifted_low < 1 < shifted_high


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(2)).double()
    low, high = bootstrap_interval(values.tolist(), seed=3)
    half_width = 1.96 * float(values.std()) / len(values) ** 0.5
    assert low == pytest.approx(float(values.mean()) - half_width, abs=0.01)
    assert high == pytest.approx(float(values.mean()) + half_width, abs=0.01)


def test_equal_seeds_give_equal_intervals_and_equal_values_none() -> None:
    assert bootstrap_interval([0.0] * 20, seed=0) == (0.0, 0.0)
    values = [0.1, 0.4, -0.2, 0.9]
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)


# -- likelihood of an answer -----------------------------------------------------------------------


def direct_nll(engine: SamKVEngine, answer: str) -> float:
    """Prompt and answer, tokenised segment by segment, through transformers' own forward pass and attention."""
    prompt_ids, answer_ids = [i for text in SEGMENTS for i in engine.tokenize(text)], engine.tokenize(answer)
    with torch.inference_mode():
        logits = tiny.model().forward(torch.tensor([prompt_ids + answer_ids])).logits[0]
    return float(torch.nn.functional.cross_entropy(logits[len(prompt_ids) - 1 : -1], torch.tensor(answer_ids)))


@pytest.mark.parametrize("answer", ["seven winter letters", "x"], ids=["many tokens", "one token"])
@pytest.mark.parametrize("method", [FullPrefill(), tiny.method(sequence_ratio=1.0)], ids=lambda method: method.name)
def test_nll_of_an_answer_is_that_of_a_direct_forward(
    tiny_engine: SamKVEngine, method: PrefillMethod, answer: str
) -> None:
    tiny_engine.add_chunks(CHUNKS)
    result = tiny_engine.generate_scored("".join(SEGMENTS), answer, max_new_tokens=8, method=method)
    assert result.reference_nll == pytest.approx(direct_nll(tiny_engine, answer), abs=1e-4)


@pytest.mark.parametrize("name", ["full_prefill", "naive_reuse", "scout"])
def test_scoring_changes_no_answer_and_decoding_no_score(tiny_engine: SamKVEngine, name: str) -> None:
    tiny_engine.add_chunks(CHUNKS)
    prompt, method = tiny.rag_prompt(CHUNKS), tiny.method(name)
    plain = tiny_engine.generate(prompt, max_new_tokens=12, method=method)
    result = tiny_engine.generate_scored(prompt, "stone island", max_new_tokens=12, method=method)
    after_one_token = tiny_engine.generate_scored(prompt, "stone island", max_new_tokens=1, method=method)
    assert result.token_ids == plain.token_ids
    assert result.metrics.kv_bytes_resident == plain.metrics.kv_bytes_resident
    assert result.reference_nll == pytest.approx(after_one_token.reference_nll, abs=1e-5)


def test_a_reference_without_tokens_is_refused(tiny_engine: SamKVEngine) -> None:
    with pytest.raises(ConfigurationError, match="at least one token"):
        tiny_engine.generate_scored("What tide?", "")


# -- case files ------------------------------------------------------------------------------------

CASE = {
    "id": "1",
    "question": "Which tide?",
    "answers": ["ebb"],
    "chunks": [{"title": "Tide", "text": "The ebb."}, {"title": "", "text": "the flood ."}],
    "supporting": ["Tide"],
    "type": "ignored",
}


@pytest.fixture
def write_cases(tmp_path: Path) -> Callable[..., Path]:
    def write(*cases: object) -> Path:
        file = tmp_path / "cases.jsonl"
        file.write_text("".join((c if isinstance(c, str) else json.dumps(c)) + "\n" for c in cases))
        return file

    return write


def test_a_case_becomes_the_prompt_that_is_agreed_on(write_cases: Callable[..., Path]) -> None:
    (case,) = load_cases(write_cases(CASE))
    assert case.supporting == {"Tide: The ebb."}
    system, user = build_messages(case.question, case.chunks)
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert user["role"] == "user"
    assert user["content"] == (
        "Answer the question using only the passages. Reply with the short answer only, no explanation.\n\n"
        "Passages:\n\nTide: The ebb.\n\nthe flood .\n\nQuestion: Which tide?\nReply with the short answer only."
    )


def test_a_limit_takes_the_first_cases_or_a_sample_that_grows(write_cases: Callable[..., Path]) -> None:
    file = write_cases(*(CASE | {"id": str(i)} for i in range(20)))
    assert [case.case_id for case in load_cases(file, limit=3)] == ["0", "1", "2"]
    drawn = [case.case_id for case in load_cases(file, limit=5, seed=7)]
    assert drawn == [case.case_id for case in load_cases(file, limit=5, seed=7)]
    assert drawn != ["0", "1", "2", "3", "4"]
    assert drawn == [case.case_id for case in load_cases(file, limit=9, seed=7)][:5]


@pytest.mark.parametrize("supporting", [None, [], ["No chunk has this title"]])
def test_supporting_chunks_may_be_unknown(write_cases: Callable[..., Path], supporting: object) -> None:
    (case,) = load_cases(write_cases(CASE | {"supporting": supporting}))
    assert case.supporting is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: the line is not a JSON object"),
        *(
            (json.dumps({k: v for k, v in (CASE | {"id": "2"}).items() if k != key}), f"line 2: '{key}' is missing")
            for key in ("id", "question", "answers", "chunks")
        ),
        (json.dumps(CASE), "line 2: id '1' was given before"),
        (json.dumps(CASE | {"id": "2", "answers": []}), r"'answers' is \[\]"),
        (json.dumps(CASE | {"id": "2", "answers": [" "]}), "'answers' is"),
        (json.dumps(CASE | {"id": "2", "chunks": []}), r"'chunks' is \[\]"),
        (json.dumps(CASE | {"id": "2", "chunks": ["text"]}), "'chunks' is"),
        (json.dumps(CASE | {"id": "2", "chunks": [{"text": "no title"}]}), "'title' is missing"),
        (json.dumps(CASE | {"id": "2", "chunks": [{"title": "no text"}]}), "'text' is missing"),
        (json.dumps(CASE | {"id": "2", "supporting": "Tide"}), "'supporting' is 'Tide'"),
    ],
)
def test_a_line_that_is_no_case_is_named(write_cases: Callable[..., Path], line: str, words: str) -> None:
    with pytest.raises(CaseFileError, match=words) as error_info:
        load_cases(write_cases(CASE, line))
    assert "cases.jsonl" in str(error_info.value)


def test_a_file_without_cases_or_no_file_is_named(tmp_path: Path, write_cases: Callable[..., Path]) -> None:
    with pytest.raises(CaseFileError, match=r"cases\.jsonl holds no cases"):
        load_cases(write_cases("", " "))
    with pytest.raises(CaseFileError, match=r"missing\.jsonl cannot be read"):
        load_cases(tmp_path / "missing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(CaseFileError, match=r"binary\.jsonl cannot be read"):
        load_cases(tmp_path / "binary.jsonl")
