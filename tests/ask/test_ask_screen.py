"""On a terminal there are colours and bars; in a pipe, or where they are not wanted, there are none."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from samkv_rag.ask.index import Place
from samkv_rag.ask.library import Update
from samkv_rag.ask.prompt import make_prompt
from samkv_rag.ask.report import Source
from samkv_rag.ask.screen import Screen, printable
from samkv_rag.results import GenerationMetrics

SOURCES = [
    Source("a.md", None, 0.71, 200, 62, "Text."),
    Source("b.pdf", 3, 0.6, 1200, 24, "Text.", also_in=(Place("c [x].md"),)),
]
METRICS = GenerationMetrics(
    "scout", None, 300, 9, 1400, 2, 0, 0, 1400, 0.15, 0.15, 2_500_000, 7_100_000, 0.5, 30.0, 1.0
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(screen: Screen) -> None:
    with screen.bar(3, "Reading files") as advance:
        advance(1)
        advance(2)
    screen.status("Loading")
    screen.updated(Update(3, 1400, 3, 4, 4, 1, ("a.md is empty; leave it out",), 2.0))
    for piece in ("\n The", " lens\x1b[2J.", ""):
        screen.answer(piece)
    screen.answer_ends(cut=False)
    screen.sources(SOURCES)
    screen.figures(METRICS)


def on_terminal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, str]:
    """What is shown where standard output and standard error are a terminal."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:  # not by a fixture: pytest puts its own streams back between the two
        patch.setattr(sys, "stdout", Terminal())
        patch.setattr(sys, "stderr", Terminal())
        show(Screen())
        return sys.stdout.getvalue(), sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    show(Screen())
    out, error = capsys.readouterr()
    assert out == (
        "The lens [2J.\n\n"
        "score  tokens kept   source\n"
        " 0.71   31% of 200   a.md\n"
        " 0.60    2% of 1,200  b.pdf, page 3; c [x].md\n\n"
        "first token after 0.50 s · 15.0% of 1,400 passage tokens kept · KV 2.5 MB instead of 7.1 MB\n"
    )
    assert error == "samkv: warning: a.md is empty; leave it out\n"


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = on_terminal(monkeypatch)
    assert "\x1b[1m" in out and "\x1b[36m" in out
    assert "\x1b[2J" not in out
    assert "Reading files" in error and "3/3" in error
    assert "3 files, 1,400 passages; 4 of them computed in 2.0 s; 1 old ones removed" in error


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error = on_terminal(monkeypatch, NO_COLOR="1")
    assert "\x1b[36m" not in out
    assert "\x1b[33m" not in error


def test_quiet_keeps_standard_output_free(capsys: pytest.CaptureFixture[str]) -> None:
    show(Screen(quiet=True))
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("samkv: warning:")


def test_full_prefill_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().figures(replace(METRICS, fallback_reason="few tokens", sequence_ratio=1.0, kv_bytes_resident=7_100_000))
    assert capsys.readouterr().out == (
        "\nfirst token after 0.50 s · all 1,400 passage tokens read (few tokens) · KV 7.1 MB\n"
    )


def test_an_answer_that_was_cut_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.answer("The lens")
    screen.answer_ends(cut=True)
    assert capsys.readouterr().out == "The lens … (cut off by --max-tokens)\n\n"


def test_printable_keeps_text_and_line_breaks() -> None:
    assert printable("Café 灯台\n👩‍🚒 \x1b]0;x\x07\x9b1m\ud83d") == "Café 灯台\n👩‍🚒  ]0;x  1m "


def test_the_question_stands_last_and_passages_byte_for_byte() -> None:
    ((message),) = make_prompt(["{a} best", "second", "worst"], " {question}? ")
    assert message["role"] == "user"
    content = message["content"]
    assert content.index("{a} best") < content.index("worst") < content.index("second")
    assert content.endswith("Question: {question}?")
