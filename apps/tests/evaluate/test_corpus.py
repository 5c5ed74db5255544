"""Chunks retrieved from a corpus, their order, and the frameworks' prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluating import Options, config_of, lines_of

from samkv_apps.evaluate import EvaluationOptions, evaluate
from samkv_apps.evaluate.corpus import arranged
from samkv_apps.evaluate.datasets import Case
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.retrieval import BM25, in_order

TIDE = Case("tide", "When is the ebb?", ("noon",), ("the flood of March", "an ebb at noon"), frozenset(["ebb ebb"]))
LAMP = Case("lamp", "Who lit the lamp?", ("Innes",), ("the lamp burns oil", "ebb ebb"), None)
BEST_FIRST = ["ebb ebb", "an ebb at noon"]


def chunks_of(options: EvaluationOptions, *cases: Case) -> list[list[str]]:
    return [list(case.chunks) for case in arranged(cases, [TIDE, LAMP], options)]


def test_bm25_finds_rare_words_first_and_ties_in_order() -> None:
    texts = ["tide tide lamp", "tide and beacon", "the tide", "lamp"]
    assert BM25(texts).nearest("Which beacon of the tide?", 2)[0] == 1
    assert BM25(texts).nearest("lamp", 4)[0] == 3
    assert BM25(texts).nearest("of the nothing known", 4) == [0, 1, 2, 3]
    assert BM25(texts).nearest("Is it the", 2) == [0, 1], "it has no word that counts"


def test_a_question_gets_the_nearest_chunks_of_all_cases(options: Options) -> None:
    asked = options(corpus=True, retriever="bm25", top_k=2)
    (found,) = arranged([TIDE], [TIDE, LAMP], asked)
    assert list(found.chunks) == BEST_FIRST
    assert (found.retrieved, found.supporting, found.more) == (1.0, {"ebb ebb"}, ())
    (missed,) = arranged([LAMP], [TIDE, LAMP], options(corpus=True, retriever="bm25", top_k=1))
    assert (missed.chunks, missed.retrieved) == (("the lamp burns oil",), None)


def test_what_the_retriever_of_a_case_missed_counts(options: Options) -> None:
    asked = options(corpus=True, retriever="bm25", top_k=1)
    named = replace(LAMP, names=(frozenset(["oil"]), frozenset(["ebb"])))
    for wanted, retrieved, supporting in (("oil", 1.0, {"the lamp burns oil"}), ("elsewhere", 0.0, None)):
        case = replace(LAMP, wanted=frozenset([wanted]))
        (found,) = arranged([case], [TIDE, named], asked)
        assert (found.retrieved, found.supporting) == (retrieved, supporting)


def test_more_is_kept_for_what_reads_more(options: Options) -> None:
    asked = options(corpus=True, retriever="bm25", top_k=1, more_top_k=3, methods=["more_chunks"], order="best_last")
    (found,) = arranged([TIDE], [TIDE, LAMP], asked)
    assert found.chunks == ("ebb ebb",)
    assert list(found.more[:2]) == BEST_FIRST and len(found.more) == 3
    assert len(found.every_chunk) == 3


def test_orders_of_a_corpus_and_of_a_cases_own_chunks(options: Options) -> None:
    assert chunks_of(options(corpus=True, retriever="bm25", top_k=2, order="best_last"), TIDE) == [BEST_FIRST[::-1]]
    own = ["an ebb at noon", "the flood of March"]
    assert chunks_of(options(retriever="bm25", order="best_first"), TIDE) == [own]
    assert chunks_of(options(retriever="bm25", order="best_last"), TIDE) == [own[::-1]]
    assert chunks_of(options(), TIDE, LAMP) == [list(TIDE.chunks), list(LAMP.chunks)]


def test_a_random_order_is_drawn_by_seed_and_case() -> None:
    ranked = [str(i) for i in range(20)]
    one = in_order(ranked, "random", "1 a")
    assert sorted(one) == sorted(ranked)
    assert one == in_order(ranked, "random", "1 a")
    assert len({tuple(in_order(ranked, "random", seed)) for seed in ("1 a", "1 b", "2 a")}) == 3


def test_templates_are_the_frameworks_own() -> None:
    from llama_index.core.llms import MockLLM
    from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL

    class Chat(MockLLM):
        @property
        def metadata(self) -> Any:
            return super().metadata.model_copy(update={"is_chat_model": True})

    own = DEFAULT_TEXT_QA_PROMPT_SEL.select(Chat()).format_messages(context_str="a {x}\n\nb", query_str="Why?")
    system, user = build_messages("Why?", ["a {x}", "b"], template="llama_index")
    assert [(message.role.value, message.content) for message in own] == [
        ("system", system["content"]), ("user", user["content"]),
    ]  # fmt: skip
    assert "Context information is below.\n---------------------\na {x}\n\nb\n-----" in user["content"]
    system, user = build_messages("Why?", ["a", "b"], template="langchain")
    assert system["content"].startswith("You are an assistant for question-answering tasks.")
    assert system["content"].endswith("\n\na\n\nb")
    assert user == {"role": "user", "content": "Why?"}
    assert build_messages("Why?", ["a", "b"], template="plain") == [{"role": "user", "content": "a\n\nb\n\nWhy?"}]


def test_a_corpus_from_the_command_line_and_a_reference_for_it(
    command: Callable[..., str], cases: Path, tmp_path: Path
) -> None:
    out, more = tmp_path / "out", tmp_path / "more"
    arguments = "--limit 1 --max-new-tokens 2 --option block_tokens=8 --sequence-ratio 0.4 --corpus --retriever bm25"
    arguments += f" --top-k 4 --order best_last --template langchain --data {cases}"
    command(out, *arguments.split())
    config = config_of(out)
    assert config["template"] == "langchain"
    assert config["retrieval"] == {
        "corpus": True, "top_k": 4, "retriever": "bm25", "order": "best_last", "seed": None,
    }  # fmt: skip
    report = (out / "report.md").read_text()
    assert "The prompt: the template langchain. Chunks in it: best last, the 4 nearest by bm25 of all chunks" in report
    assert "Retrieval of tides: " in report

    command(more, *arguments.split(), "--reference", out)
    assert lines_of(more)[0] == lines_of(out)[0]


def test_a_limit_leaves_the_corpus_whole(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def record(cases: list[Case], every: list[Case], asked: EvaluationOptions) -> list[Case]:
        given.append((len(cases), len(every)))
        return arranged(cases, every, asked)

    monkeypatch.setattr("samkv_apps.evaluate.run.arranged", record)
    evaluate(options(corpus=True, retriever="bm25", limit=1, methods=["full_prefill"]))
    assert given == [(1, 3)]
