"""The evaluation domains are well formed, answerable from their chunks, and up to date with their sources."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from benchmarks.domains.build import (
    CHUNKS_PER_CASE,
    CHUNKS_PER_LONG_CASE,
    DOMAINS,
    HERE,
    LONG_DOMAINS,
    LONG_KINDS,
    build,
    build_long,
    questions,
    requests,
)
from benchmarks.domains.code.parcelkit.labels import label_width_dots
from benchmarks.domains.code.parcelkit.pricing import base_price_cents
from benchmarks.domains.code.parcelkit.retry import NamedPolicies, backoff_delay_s
from benchmarks.domains.code.parcelkit.schedule import makes_todays_van
from samkv_apps.evaluate.datasets import load_cases, load_long_cases
from samkv_apps.evaluate.scoring import normalise

FIELDS = {"id", "question", "answers", "chunks", "supporting"}
FEWEST_QUESTIONS = 36
FEWEST_TWO_CHUNK_QUESTIONS = 12
CHUNK_CHARACTERS = range(400, 1601)


def cases(domain: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()]


DERIVED = {question["id"] for domain in DOMAINS for question in questions(domain) if question.get("derived")}


def normalised(text: str) -> str:
    """Lower case, no articles, words separated by single spaces; ``timeout_s=2.5`` becomes ``timeout s 2 5``."""
    words = re.sub(r"[\W_]+", " ", text.lower()).split()
    return " " + " ".join(word for word in words if word not in ("a", "an", "the")) + " "


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_committed_file_equals_a_fresh_build_and_is_what_evaluation_reads(domain: str) -> None:
    file = HERE / f"{domain}.jsonl"
    assert file.read_text(encoding="utf-8") == build(domain), "run: python -m benchmarks.domains.build"
    read = [(case.case_id, len(case.supporting or ())) for case in load_cases(file)]
    assert read == [(case["id"], len(case["supporting"])) for case in cases(domain)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_enough_questions_of_both_kinds_over_chunks_of_a_retrievers_size(domain: str) -> None:
    num_supporting = [len(case["supporting"]) for case in cases(domain)]
    assert len(num_supporting) >= FEWEST_QUESTIONS
    assert num_supporting.count(2) >= FEWEST_TWO_CHUNK_QUESTIONS
    assert set(num_supporting) == {1, 2}
    assert len({case["question"] for case in cases(domain)}) == len(num_supporting), "each is there once"
    assert all(len(chunk.text) in CHUNK_CHARACTERS for chunk in DOMAINS[domain]())


@pytest.mark.parametrize("domain", DOMAINS)
def test_supporting_chunks_stand_anywhere_in_the_prompt(domain: str) -> None:
    positions = [
        [chunk["title"] for chunk in case["chunks"]].index(title)
        for case in cases(domain)
        for title in case["supporting"]
    ]
    assert set(positions) == set(range(CHUNKS_PER_CASE))
    assert max(positions.count(position) for position in set(positions)) < len(positions) / 4


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for domain in DOMAINS for case in cases(domain)])
def test_a_case_has_the_fields_of_the_format_and_its_answer_in_one_supporting_chunk(case: dict[str, Any]) -> None:
    """Exactly one chunk contains the answer; a derived answer is in none."""
    assert set(case) == FIELDS
    assert case["question"].endswith("?")
    assert case["answers"] and all(normalised(answer).strip() for answer in case["answers"])
    texts = {chunk["title"]: chunk["text"] for chunk in case["chunks"]}
    assert len(texts) == len(case["chunks"]) == CHUNKS_PER_CASE
    supporting = [normalised(texts[title]) for title in case["supporting"]]
    if case["id"] in DERIVED:
        assert len(supporting) == 2
    else:
        assert sum(normalised(case["answers"][0]) in text for text in supporting) == 1


@pytest.mark.parametrize("kind", LONG_KINDS)
def test_the_files_of_long_answers_are_fresh_and_read_by_evaluation(kind: str) -> None:
    file = HERE / f"{kind}.jsonl"
    assert file.read_text(encoding="utf-8") == build_long(kind), "run: python -m benchmarks.domains.build"
    rows = [row for domain in LONG_DOMAINS for row in requests(domain, kind)]
    assert [case.case_id for case in load_long_cases(file)] == [row["id"] for row in rows]
    assert len(rows) >= 16


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for kind in LONG_KINDS for case in cases(kind)])
def test_every_item_stands_in_the_chunks_and_not_in_the_question(case: dict[str, Any]) -> None:
    assert len(case["chunks"]) == CHUNKS_PER_LONG_CASE
    assert len(case["items"]) >= 8
    texts = " ".join(f" {normalise(chunk['text'])} " for chunk in case["chunks"])
    question = f" {normalise(case['question'])} "
    wordings = [[f" {normalise(wording)} " for wording in item] for item in case["items"]]
    for number, item in enumerate(wordings):
        assert any(wording in texts for wording in item)
        assert not any(wording in question for wording in item)
        others = [wording for other in wordings[:number] + wordings[number + 1 :] for wording in other]
        assert not any(wording in other for wording in item for other in others), "one wording would count twice"


@pytest.mark.parametrize(
    ("beginning", "result"),
    [
        ("How many dots does `label_width_dots`", label_width_dots("slim")),
        ("What does `makes_todays_van` return", makes_todays_van("express", 1070, is_saturday=False)),
        ("How many seconds does `backoff_delay_s`", backoff_delay_s(2, NamedPolicies.PRINTER)),
        ("What is the price in cents of the first kilogram", base_price_cents(1000, "70001")),
    ],
)
def test_answers_are_what_the_code_computes(beginning: str, result: object) -> None:
    (case,) = [case for case in cases("code") if case["question"].startswith(beginning)]
    assert str(result) in case["answers"]
