"""Cases from a folder of documents and a table of questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluating import LetterEmbedder, config_of, lines_of, runs_of

from samkv_apps.evaluate import cases_from_folder, folder
from samkv_apps.evaluate.datasets import load_cases
from samkv_apps.evaluate.errors import CaseFileError
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.questions import read_questions
from samkv_apps.evaluate.retrieval import Retriever, best_outside
from samkv_rag.exceptions import ConfigurationError
from support import tiny

Make = Callable[..., Path]
TIDES = {"ebb.md": "ebb " * 40, "flood.txt": "flood " * 40, "sub/slack.md": "slack " * 40}
TABLE = "question,answer,source\nWhat ebbs?,ebb|the ebb,ebb.md\nWhat is slack?,slack,sub/slack.md\n"


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    for name, text in TIDES.items():
        file = tmp_path / "documents" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "documents"


@pytest.fixture
def make(documents: Path, tmp_path: Path) -> Make:
    def made(table: str = TABLE, top_k: int = 2, **changes: Any) -> Path:
        questions = tmp_path / "questions.csv"
        questions.write_text(table, encoding="utf-8")
        arguments: dict[str, Any] = {"tokenize": str.split, "embedder": LetterEmbedder()}
        return cases_from_folder(documents, questions, tmp_path / "out", top_k=top_k, **(arguments | changes))

    return made


def test_each_question_gets_the_nearest_chunks(make: Make, documents: Path) -> None:
    (documents / "broken.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.warns(UserWarning, match=r"broken\.txt could not be read and is left out"):
        ebb, slack = load_cases(make())
    assert (ebb.case_id, ebb.question, ebb.answers) == ("row-2", "What ebbs?", ("ebb", "the ebb"))
    assert TIDES["ebb.md"].strip() in ebb.chunks and len(ebb.chunks) == 2
    assert slack.supporting == {TIDES["sub/slack.md"].strip()}
    assert (ebb.retrieved, slack.retrieved) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("table", "retrieved"),
    [("question,answer,source\nWhat ebbs?,ebb,flood.txt\n", 0.0), ("question,answer\nWhat ebbs?,ebb\n", None)],
    ids=["missed", "no source"],
)
def test_a_source_that_is_missed_or_unknown_supports_nothing(make: Make, table: str, retrieved: float | None) -> None:
    (case,) = load_cases(make(table, top_k=1))
    assert (case.retrieved, case.supporting) == (retrieved, None)


def test_cases_are_made_once_and_others_refused(make: Make, documents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make()
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folder, "Retriever", None)  # fails if it is called
        assert make() == file
    for changes in ({"top_k": 1}, {"table": TABLE + "More?,ebb,\n"}):
        with pytest.raises(CaseFileError, match="made of other documents, questions or top_k; choose another"):
            make(**changes)
    (documents / "ebb.md").write_text("changed")
    with pytest.raises(CaseFileError, match="made of other documents"):
        make()
    assert file.read_bytes() == before


def test_errors_come_before_anything_is_embedded(make: Make) -> None:
    broken = {"embedder": None, "tokenize": None}
    with pytest.raises(CaseFileError, match=r"row 2: the source 'tide.md' is none of the 3 documents \(ebb\.md"):
        make("question,answer,source\nWhat ebbs?,ebb,tide.md\n", **broken)
    with pytest.raises(ConfigurationError, match="top_k is 0"):
        make(top_k=0, **broken)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"row 1: the header is \[\]"),
        (b"question,reply\na,b\n", "row 1: the header is .*it must be question,answer"),
        (b"question,answer,answer\na,b,c\n", "row 1: the header"),
        (b"question,answer\n", "holds no questions; write one per row"),
        (b"question,answer\na,b\n ,c\n", "row 3: the question is empty"),
        (b"question,answer\na, | \n", "row 2: the answer is empty; fill it in or delete the row"),
        (b"question,answer\n\na,b,c\n", "row 3 has 3 cells, the header 2; put a text with commas in quotes"),
        (b'question,answer\n"a,b\n', "cannot be read"),
        (b"question,answer\n\xe9,b\n", "cannot be read .*give a CSV file in UTF-8"),
    ],
)
def test_a_wrong_table_is_told_with_its_row(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "q.csv").write_bytes(content)
    with pytest.raises(CaseFileError, match=words):
        read_questions(tmp_path / "q.csv")


@pytest.mark.parametrize(
    "content",
    [
        'question,answer,source\nWho?,"Flora, or Mabel|both",a.md\n',
        "\ufeffQuestion;Answer;Source\r\nWho?;Flora, or Mabel | both;a.md\r\n;;\r\n",
        "answer\tsource\tquestion\nFlora, or Mabel|both|\ta.md\tWho?\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.csv").write_bytes(content.encode())
    (question,) = read_questions(tmp_path / "q.csv")
    assert (question.row, question.question, question.source) == (2, "Who?", "a.md")
    assert question.answers == ("Flora, or Mabel", "both")


def test_a_text_of_several_windows_is_as_near_as_its_nearest() -> None:
    class Windows:
        def embed(self, text: str) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0], [0.0, 1.0]] if text == "both" else [[0.6, 0.8]])

    assert Retriever(["one", "both"], Windows()).nearest("one", 5) == [0, 1]
    assert Retriever(["both", "one", "one"], Windows()).nearest("one", 2) == [1, 2]


def test_the_best_stand_outside() -> None:
    assert best_outside([1, 2, 3, 4, 5]) == [1, 3, 5, 4, 2]
    assert best_outside([1, 2]) == [2, 1]
    assert best_outside([]) == []


def test_a_prompt_of_ones_own_is_filled_once() -> None:
    assert build_messages("Why {passages}?", ["a {question}", "b"], "Read {passages} {well}.\n{question}") == [
        {"role": "user", "content": "Read a {question}\n\nb {well}.\nWhy {passages}?"}
    ]


def test_from_a_folder_to_a_report(
    command: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "minilm", LetterEmbedder)
    out, notes = tmp_path / "out", tmp_path / "notes"
    notes.mkdir()
    for i in range(4):
        (notes / f"{i}.md").write_text(tiny.text(i, num_words=40))
    (tmp_path / "q.csv").write_text("question,answer,source\nWhich tide?,ebb,1.md\nWhich stone?,north,2.md\n")
    (tmp_path / "prompt.txt").write_text("{passages}\n\n{question}")
    arguments = f"--documents {notes} --questions {tmp_path / 'q.csv'} --prompt {tmp_path / 'prompt.txt'} --top-k 3"
    arguments += " --sequence-ratio 0.3,0.6 --max-new-tokens 2 --option block_tokens=8"
    assert "cases  scout 0.6  recall " in command(out, *arguments.split())
    assert {(run["data"], run["n"]) for run in runs_of(out)} == {("cases", 2)}
    config = config_of(out)
    assert config["prompt"] == "{passages}\n\n{question}"
    assert config["data"]["cases"]["retrieved"]["n"] == 2
    report = (out / "report.md").read_text()
    assert "Retrieval of cases: " in report
    assert str(tmp_path) not in report

    command(out, *arguments.split())
    assert len(lines_of(out)) == 2 * 3, "the same again goes on where it stopped"
