"""`samkv evaluate --task long`: the comparison along full prefill's answer, and its report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluating import config_of, write_cases

from samkv_apps.evaluate import EvaluationOptions, LongAnswer, compare_long_answers
from samkv_apps.evaluate.datasets import load_cases
from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.long import _Follower, _Leader, grouped, long_cases, repetition, report
from samkv_rag.exceptions import ConfigurationError

Make = Callable[..., EvaluationOptions]
LONG = {"task": "long", "group": 2, "max_new_tokens": 10}


def test_a_method_that_keeps_all_is_full_prefill_along_its_answer(options: Make) -> None:
    full, scout, refreshed, reuse = compare_long_answers(options(sequence_ratios=[1.0], **LONG))
    assert (full.method, full.kl, full.agreement) == ("full_prefill", 0.0, 1.0)
    assert (scout.method, scout.agreement) == ("scout 1", 1.0)
    assert scout.kl == pytest.approx(0, abs=1e-4)
    assert refreshed.method == "scout 1, refresh_tokens=auto"
    assert refreshed.answer == scout.answer == full.answer
    assert reuse.method == "naive_reuse"
    assert reuse.kl > 1e-3
    assert reuse.num_tokens == full.num_tokens == 10


def test_refreshes_run_beside_the_fixed_set(options: Make, tmp_path: Path) -> None:
    changes = LONG | {"methods": ["scout"], "options": {"refresh_tokens": 3, "block_tokens": 4}}
    answers = compare_long_answers(options(**changes))
    methods = ["scout 0.4", "scout 0.4, refresh_tokens=3"]
    assert [answer.method for answer in answers] == ["full_prefill", *methods]
    assert [answer.refreshes > 0 for answer in answers] == [False, False, True]
    assert len({answer.kl for answer in answers}) == 3
    assert len({answer.kv_bytes_resident for answer in answers[1:]}) == 1
    written = [json.loads(line) for line in (tmp_path / "out" / "long.jsonl").read_text().splitlines()]
    assert [LongAnswer(**one) for one in written] == answers
    with pytest.raises(ConfigurationError, match="already"):
        compare_long_answers(options(**changes))


def test_the_command_line(command: Callable[..., str], cases: Path, tmp_path: Path) -> None:
    printed = command(tmp_path, "--data", cases, "--task", "long", "--group", 3, "--max-new-tokens", 5)
    assert "| tides | scout 0.15 | 1 | 5 |" in printed
    assert config_of(tmp_path)["task"] == "long"


def test_cases_are_put_together(options: Make, tmp_path: Path) -> None:
    cases = load_cases(write_cases(tmp_path / "cases.jsonl"))
    (case,) = grouped(cases, 2)
    assert case.case_id == "case-0+case-1"
    assert case.question.endswith("1. Which tide?\n2. Which tide?")
    assert case.items == (("seven winters", "ebb"),) * 2
    assert set(case.chunks) == {*cases[0].chunks, *cases[1].chunks}
    assert case.chunks != (*cases[0].chunks, *cases[1].chunks)
    shared = grouped([cases[0], replace(cases[0], case_id="again")], 2)
    assert len(shared[0].chunks) == len(cases[0].chunks)


def test_a_file_of_lists_and_questions(options: Make, tmp_path: Path) -> None:
    file = write_cases(tmp_path / "cases.jsonl")
    record = {
        "id": "list",
        "question": "List the tides.",
        "items": [["ebb", "the ebb"], ["flood"]],
        "chunks": [{"title": "", "text": "Ebb and flood."}],
    }
    file.write_text(file.read_text() + json.dumps(record) + "\n")
    asked, *groups = long_cases(file, options(**LONG))
    assert (asked.question, asked.items, asked.chunks) == (
        "List the tides.", (("ebb", "the ebb"), ("flood",)), ("Ebb and flood.",)
    )  # fmt: skip
    assert [len(group.items) for group in groups] == [2]
    assert long_cases(file, options(**LONG | {"limit": 1})) == [asked]
    assert len(long_cases(file, options(**LONG | {"group": 1, "limit": 2}))) == 2
    with pytest.raises(CaseFileError, match="'answers' is missing"):
        load_cases(file)


def test_too_few_questions_for_a_group(options: Make, tmp_path: Path) -> None:
    with pytest.raises(CaseFileError, match="fewer than --group 9"):
        long_cases(write_cases(tmp_path / "cases.jsonl"), options(**LONG | {"group": 9}))


@pytest.mark.parametrize("items", [[], [[]], ["ebb"], [[" "]], None])
def test_items_are_lists_of_wordings(options: Make, tmp_path: Path, items: object) -> None:
    record = {"id": "1", "question": "List.", "items": items, "chunks": [{"title": "", "text": "Ebb."}]}
    (tmp_path / "cases.jsonl").write_text(json.dumps(record))
    with pytest.raises(CaseFileError, match=r"'items' is .*must be a list of lists of texts"):
        long_cases(tmp_path / "cases.jsonl", options(**LONG))


def test_divergence_is_that_of_the_distributions() -> None:
    leader = _Leader()
    assert leader(torch.tensor([[0.5, 0.25, 0.25]]).log()) == 0
    follower = _Follower(leader)
    assert follower(torch.tensor([[0.25, 0.5, 0.25]]).log()) == 0, "the leader's token"
    assert follower.kl == [pytest.approx(0.25 * 0.693147, abs=1e-3)]
    assert follower.agrees == [False]


def test_the_report_divides_by_the_fixed_set_and_counts_items() -> None:
    def answer(method: str, kl: float, num_tokens: int, item_recall: float) -> LongAnswer:
        return LongAnswer("d", "c", method, kl, 0.5, num_tokens, "", item_recall, 0.0, 0.1, 2, 0.25, 1_000_000)

    answers = [answer("full_prefill", 0, 30, 0.8), answer("m 0.15", 2.0, 30, 0.5), answer("m 0.15, r=8", 0.5, 30, 0.6)]
    rows = report(answers, 0).splitlines()
    assert [row.split(" | ")[6] for row in rows[4:]] == ["", "1.000", "0.250"]
    assert "-0.200 to -0.200" in rows[-1]


@pytest.mark.parametrize(("text", "share"), [("a b c d e", 0), ("one two three four one two three four", 0.2), ("", 0)])
def test_repetition(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)
