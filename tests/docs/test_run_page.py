"""The runner itself: what is wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sybil.example import SybilFailure

from checks import problems
from run_page import difference, run_page
from shell import commands
from snippets import MisplacedBlockError, Snippet, snippets

Run = Callable[..., None]


def fence(language: str, source: str) -> str:
    return f"```{language}\n{source}\n```\n\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A function that runs a page of the blocks given."""
    monkeypatch.chdir(tmp_path)

    def run_blocks(*blocks: str, servers: frozenset[str] = frozenset()) -> None:
        page = tmp_path / "page.md"
        page.write_text("# Page\n\n" + "".join(blocks))
        run_page(page, servers)

    return run_blocks


def test_python_shares_a_namespace_and_prints_what_is_shown(run: Run) -> None:
    run(fence("python", "x = 41"), "Text.\n\n", fence("python", "print(x + 1)"), fence("text", "42"))


def test_another_output_fails(run: Run) -> None:
    with pytest.raises(SybilFailure, match=r"line 3(?s:.)*- 43(?s:.)*\+ 42"):
        run(fence("python", "print(42)"), fence("text", "43"))


def test_output_that_is_not_shown_fails(run: Run) -> None:
    with pytest.raises(SybilFailure, match="the page does not show it"):
        run(fence("python", "print(42)"))


def test_output_that_is_not_printed_fails(run: Run) -> None:
    with pytest.raises(SybilFailure):
        run(fence("python", "x = 42"), fence("text", "42"))


def test_an_exception_fails_and_names_its_line(run: Run) -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run(fence("python", "x = 0\n1 / x"))
    assert error.traceback[-1].lineno + 1 == 5


def test_output_below_other_text_belongs_to_nothing(run: Run) -> None:
    with pytest.raises(MisplacedBlockError, match=r"page\.md:8"):
        run(fence("python", "x = 42"), "Text.\n", fence("text", "42"))


def test_shell_commands_run_in_the_folder_and_stop_at_the_first_failure(run: Run, tmp_path: Path) -> None:
    run(fence("bash", "echo one > file\ncat file"), fence("text", "one"))
    with pytest.raises(AssertionError, match="status 1"):
        run(fence("bash", "rm nothing\necho on > after"))
    assert (tmp_path / "file").exists()
    assert not (tmp_path / "after").exists()


def test_transcripts_are_compared_command_by_command(run: Run) -> None:
    run(fence("console", "$ echo a \\\n    b\na b\n$ mkdir x\n$ ls\npage.md\nx"))
    with pytest.raises(SybilFailure, match=r"\$ ls"):
        run(fence("console", "$ echo a\na\n$ ls\nnothing"))
    with pytest.raises(SybilFailure, match="does not show it"):
        run(fence("console", "$ echo a"))


def test_marked_snippets_are_left_out(run: Run) -> None:
    run("<!-- not run: there is no such program -->\n", fence("python", "1 / 0"))
    run("<!-- needs: s3 -->\n", fence("python", "1 / 0"))
    with pytest.raises(ZeroDivisionError):
        run("<!-- needs: s3 -->\n", fence("python", "1 / 0"), servers=frozenset({"s3"}))
    with pytest.raises(ZeroDivisionError):
        run("<!-- not run: too far above -->\n\nText.\n\n", fence("python", "1 / 0"))


def test_figures_of_one_run_may_differ_but_nothing_else(run: Run) -> None:
    shown = "<!-- figures differ -->\n" + fence("text", " 0.6   9% of 1,225   a.md\nin 2.1 s")
    run(fence("bash", "echo ' 0.58  12% of 225   a.md'; echo in 13 s"), shown)
    for other in ("echo ' 0.58  12% of 225   b.md'; echo in 13 s", "echo ' 0.58  12% of 225   a.md'"):
        with pytest.raises(SybilFailure):
            run(fence("bash", other), shown)
    with pytest.raises(SybilFailure):
        run(fence("bash", "echo 2"), fence("text", "1"))


def test_commands_that_install_are_not_run(run: Run) -> None:
    run(fence("bash", "git clone nowhere && cd nowhere\nmake nothing"))


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("a\nb", "a  \nb\n\n", True),
        ("a\nb", " a\nb", False),
        ("in … s", "in 2.13 s", True),
        ("in … s", "in 2.13 m", False),
        ("in … s", "in  s\n", False),
        ("a … b", "a\nb", False),
        ("a\n…\nb", "a\n1\n2\nb", True),
        ("a\n…\nb", "a\nb", False),
        ("a.c", "abc", False),
        ("…", "anything", False),
    ],
)
def test_what_counts_as_equal(expected: str, printed: str, equal: bool) -> None:
    assert (difference(expected, printed) == "") is equal


def test_a_page_is_read_in_order(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(fence("", "a figure") + fence("bash", "ls") + "- item\n\n  " + fence("json", "{}"))
    assert snippets(page) == [Snippet("bash", "ls\n", 5, None)]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("make demo   # installs", [["make", "demo"]]),
        ("git clone <url> x && cd x", [["git", "clone", "<url>", "x"], ["cd", "x"]]),
        ("samkv ingest a \\\n  --store 'b c'", [["samkv", "ingest", "a", "--store", "b c"]]),
        ("cat > f <<'END'\nrm -r x; y\nEND\nls", [["cat", ">", "f"], ["ls"]]),
        ("A=1 B=2 ls | head", [["ls"], ["head"]]),
    ],
)
def test_commands_are_told_apart(script: str, words: list[list[str]]) -> None:
    assert commands(Snippet("bash", script, 1, None)) == words


def test_commands_of_a_transcript_are_not_its_output() -> None:
    assert commands(Snippet("console", "$ ls\nrm\n$ cat \\\n  a\nb", 1, None)) == [["ls"], ["cat", "a"]]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("samkv store stat --store kv --json", ""),
        ("samkv store stat --store kv --jsn", "No such option"),
        ("samkv store stat", "--store"),
        ("samkv stores", "No such command"),
        ("samkv ingest docs --store kv > out.txt", ""),
        ("make demo", ""),
        ("make dmeo", "no make target"),
        ("pip install -e . -e integrations/langchain", ""),
        ("pip install -e integrations/langchian", "holds no package"),
        ("pip install samkv-rag[redis,demo]", ""),
        ("pip install .[rediss]", "no extra 'rediss'"),
        ("python -m benchmarks.engine", ""),
        ("python -m benchmarks.engines", "no module"),
        ("python script.py", "name a module"),
        ("curl nowhere", "unknown program"),
    ],
)
def test_commands_are_checked(command: str, wrong: str) -> None:
    found = problems(command.split())
    assert wrong in str(found)
    assert bool(found) == bool(wrong)
