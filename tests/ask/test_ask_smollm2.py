"""`samkv ask` as a user runs it: SmolLM2, MiniLM, a folder of Markdown and a PDF; in a pipe and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import pdfs
from samkv_rag.demo.corpus import sections

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sections of the demo's handbook as Markdown, four as the pages of a PDF."""
    folder, chosen = tmp_path_factory.mktemp("station"), sections()
    (folder / "handbook").mkdir()
    for section in chosen[22:30]:
        (folder / "handbook" / section.file).write_text(section.text)
    (folder / "handbook" / "animals.pdf").write_bytes(pdfs.pdf([_page(section.text) for section in chosen[39:43]]))
    return folder


def _page(text: str) -> str:
    """A section as lines of a page."""
    title, body = text.split("\n", 1)
    return "\n".join([title.removeprefix("# "), "", *textwrap.wrap(body.strip(), 80)])


def command(folder: Path, question: str, *options: str) -> dict[str, Any]:
    """Arguments of ``subprocess.run``."""
    program = [sys.executable, "-m", "samkv_rag.cli", "ask", question, "handbook", "--store", "store", *options]
    hidden = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TQDM_DISABLE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"TERM": "xterm"}
    return {"args": program, "cwd": folder, "env": environment, "timeout": 600, "check": True}


def on_a_terminal(arguments: dict[str, Any]) -> str:
    """What a program shows on a terminal."""
    reading_end, terminal = pty.openpty()
    timeout_s = arguments.pop("timeout")
    del arguments["check"]
    with subprocess.Popen(**arguments, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(reading_end, 1 << 16)
            except OSError:  # the other end is closed
                break
        assert process.wait(timeout_s) == 0, shown.decode()
    os.close(reading_end)
    return shown.decode()


def test_first_in_a_pipe_then_on_a_terminal(folder: Path) -> None:
    question = "What are the names of the two diesel generators at Skerrow?"
    first = subprocess.run(**command(folder, question, "--json"), capture_output=True, text=True)
    assert first.stderr == ""
    assert "\x1b" not in first.stdout
    found = json.loads(first.stdout)
    assert "Flora and Mabel" in found["answer"]
    assert (found["sources"][0]["file"], found["sources"][0]["page"]) == ("27-the-generators.md", None)
    assert found["update"]["num_computed"] == found["update"]["num_passages"] == 12
    assert found["metrics"]["sequence_ratio"] <= 0.15
    assert found["metrics"]["kv_bytes_resident"] < 0.3 * found["metrics"]["kv_bytes_full"]

    question = "What is the name of the station dog at Skerrow?"
    shown = on_a_terminal(command(folder, question, "--explain", "read.html"))
    assert "\x1b[1m" in shown and "━" in shown
    assert "9 files, 12 passages; none computed" in shown
    best = shown.partition("tokens kept")[2].splitlines()[1]
    assert "animals.pdf, page 3" in best
    assert "animals.pdf, page 3" in (folder / "read.html").read_text()
