"""Scores, intervals, case files, and the likelihood of an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samkv_apps.evaluate.datasets import load_cases
from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.scoring import exact_match, f1
from samkv_apps.evaluate.statistics import bootstrap_interval
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from support import tiny


@pytest.mark.parametrize(
    ("prediction", "answers", "expected_f1", "expected_em"),
    [
        ("the american!", ["American"], 1.0, 1.0),
        ("  a\tlantern,  AN  island ", ["Lantern island"], 1.0, 1.0),
        ("theatre and another", ["atre nd nother"], 0.0, 0.0),
        ("U.S.A., a well-known", ["usa wellknown"], 1.0, 1.0),
        ("Åse's", ["åses"], 1.0, 1.0),
        ("“Flora” and ‘Mabel’", ["Flora and Mabel"], 1.0, 1.0),
        ("北京。", ["北京"], 1.0, 1.0),
        ("東京です。", ["東京"], 2 / 3, 0.0),
        ("서울입니다", ["서울"], 4 / 7, 0.0),
        ("American writer", ["American"], 2 / 3, 0.0),
        ("", ["American"], 0.0, 0.0),
        ("The", ["a"], 1.0, 1.0),
        ("tide tide", ["tide"], 2 / 3, 0.0),
        ("north stone", ["stone", "north stone island", "stone north"], 1.0, 0.0),
        ("stone", ["lantern", "Stone"], 1.0, 1.0),
    ],
)
def test_scores_take_the_best_answer_under_squads_normalisation(
    prediction: str, answers: list[str], expected_f1: float, expected_em: float
) -> None:
    assert f1(prediction, answers) == pytest.approx(expected_f1)
    assert exact_match(prediction, answers) == expected_em


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


@pytest.mark.parametrize("reference", ["seven winter letters", "x"], ids=["many tokens", "one token"])
def test_a_method_that_keeps_all_gives_an_answer_full_prefills_likelihood(
    tiny_engine: SamKVEngine, reference: str
) -> None:
    chunks = [tiny.text(seed) for seed in range(3)]
    tiny_engine.add_chunks(chunks)
    prompt, keep_all = tiny.rag_prompt(chunks), tiny.method(sequence_ratio=1.0)
    full, scout = (
        tiny_engine.generate_scored(prompt, reference, max_new_tokens=12, method=method)
        for method in ("full_prefill", keep_all)
    )
    assert scout.reference_nll == pytest.approx(full.reference_nll, abs=1e-4)
    assert scout.token_ids == tiny_engine.generate(prompt, max_new_tokens=12, method=keep_all).token_ids


def test_a_reference_without_tokens_is_refused(tiny_engine: SamKVEngine) -> None:
    with pytest.raises(ConfigurationError, match="at least one token"):
        tiny_engine.generate_scored("What tide?", "")


CASE = {
    "id": "1",
    "question": "Which tide?",
    "answers": ["ebb"],
    "chunks": [{"title": "Tide", "text": "The ebb."}, {"title": "", "text": "the flood ."}],
    "supporting": ["Tide"],
    "type": "ignored",
}


def written(folder: Path, *cases: object) -> Path:
    file = folder / "cases.jsonl"
    file.write_text("".join((case if isinstance(case, str) else json.dumps(case)) + "\n" for case in cases))
    return file


def test_a_case_becomes_the_prompt_that_is_agreed_on(tmp_path: Path) -> None:
    (case,) = load_cases(written(tmp_path, CASE))
    assert case.supporting == {"Tide: The ebb."}
    system, user = build_messages(case.question, case.chunks)
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert user["role"] == "user"
    assert user["content"] == (
        "Answer the question using only the passages. Reply with the short answer only, no explanation.\n\n"
        "Passages:\n\nTide: The ebb.\n\nthe flood .\n\nQuestion: Which tide?\nReply with the short answer only."
    )


def test_a_limit_takes_the_first_cases_or_a_sample_that_grows(tmp_path: Path) -> None:
    file = written(tmp_path, *(CASE | {"id": str(i)} for i in range(20)))
    assert [case.case_id for case in load_cases(file, limit=3)] == ["0", "1", "2"]
    drawn = load_cases(file, limit=5, seed=7)
    assert drawn == load_cases(file, limit=9, seed=7)[:5]
    assert drawn != load_cases(file, limit=5)


@pytest.mark.parametrize("supporting", [None, [], ["No chunk has this title"]])
def test_supporting_chunks_may_be_unknown(tmp_path: Path, supporting: object) -> None:
    (case,) = load_cases(written(tmp_path, CASE | {"supporting": supporting}))
    assert case.supporting is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: the line is not a JSON object"),
        *(({key: None}, f"line 2: '{key}' is missing") for key in ("id", "question", "answers", "chunks")),
        ({"id": "1"}, "line 2: id '1' was given before"),
        ({"answers": []}, r"'answers' is \[\]"),
        ({"answers": [" "]}, "'answers' is"),
        ({"chunks": []}, r"'chunks' is \[\]"),
        ({"chunks": ["text"]}, "'chunks' is"),
        ({"chunks": [{"text": "no title"}]}, "'title' is missing"),
        ({"chunks": [{"title": "no text"}]}, "'text' is missing"),
        ({"supporting": "Tide"}, "'supporting' is 'Tide'"),
    ],
    ids=str,
)
def test_a_line_that_is_not_a_case_is_named(tmp_path: Path, line: str | dict[str, object], words: str) -> None:
    second = line if isinstance(line, str) else CASE | {"id": "2"} | line
    with pytest.raises(CaseFileError, match=rf"cases\.jsonl.*{words}"):
        load_cases(written(tmp_path, CASE, second))


def test_a_file_without_cases_or_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaseFileError, match=r"cases\.jsonl holds no cases"):
        load_cases(written(tmp_path, "", " "))
    with pytest.raises(CaseFileError, match=r"missing\.jsonl cannot be read"):
        load_cases(tmp_path / "missing.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(CaseFileError, match=r"binary\.jsonl cannot be read"):
        load_cases(tmp_path / "binary.jsonl")
