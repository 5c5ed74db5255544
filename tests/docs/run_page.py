"""Run the snippets of one page in order, as a reader would who pastes them: `python run_page.py PAGE [SERVER ...]`.

The working folder is where they run, and all Python shares one namespace. The servers named are those that
snippets may use; one that needs another is left out. The first snippet that fails, or prints anything but
what the page shows, ends the run with its line number.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sybil import Document, Example, Region
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract.lexers import Lexeme

from shell import is_run
from snippets import Snippet, regions

ANYTHING = "…"
_run_python = PythonEvaluator()


def run_page(page: Path, servers: frozenset[str]) -> None:
    """Run every snippet that should be run.

    Raises:
        SybilFailure: a snippet printed something else, or a command failed.
    """

    def parser(document: Document) -> Iterator[Region]:
        for region in regions(document):
            snippet: Snippet = region.parsed
            wanted = snippet.not_run is None and (snippet.needs is None or snippet.needs in servers)
            if wanted and is_run(snippet):
                region.evaluator = _evaluate
                yield region

    document = Document.parse(str(page), parser)
    document.namespace["__name__"] = "__main__"
    for example in document.examples():
        example.evaluate()


def difference(expected: str, printed: str) -> str:
    """How ``printed`` differs from ``expected``, empty where it does not.

    ``…`` stands for any text within a line, or, alone on a line, for any lines. White space at the ends
    of lines does not count.
    """
    shown, found = _lines(expected), _lines(printed)
    if not any(line.strip(f" {ANYTHING}") for line in shown):
        return f"the output shown would fit anything; it was\n{printed}"
    pattern = "\n".join(_pattern(line) for line in shown)
    return "" if re.fullmatch(pattern, "\n".join(found)) else "\n".join(difflib.ndiff(shown, found))


def _evaluate(example: Example) -> str | None:
    """A Sybil evaluator: what is wrong with the snippet, or None."""
    snippet: Snippet = example.parsed
    if snippet.language == "console":
        return _transcript(snippet)
    printed = _shell(snippet.source) if snippet.language == "bash" else _python(example, snippet)
    if snippet.figures_differ and snippet.expected is not None:
        return _compare(_without_figures(snippet.expected), _without_figures(printed))
    return _compare(snippet.expected, printed)


def _python(example: Example, snippet: Snippet) -> str:
    example.parsed = Lexeme(snippet.source, 0, 0)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        _run_python(example)
    return printed.getvalue()


def _shell(script: str) -> str:
    """What a script prints, errors included."""
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"status {done.returncode} of {script.strip()}\n{done.stdout}")
    return done.stdout


def _transcript(snippet: Snippet) -> str | None:
    for block in re.split(r"^\$ ", snippet.source, flags=re.MULTILINE)[1:]:
        lines = block.splitlines()
        num_lines = next((n for n, line in enumerate(lines, 1) if not line.endswith("\\")), len(lines))
        command, expected = "\n".join(lines[:num_lines]), "\n".join(lines[num_lines:])
        if wrong := _compare(expected if expected.strip() else None, _shell(command)):
            return f"$ {command}\n{wrong}"
    return None


def _compare(expected: str | None, printed: str) -> str | None:
    if expected is None:
        return f"printed, and the page does not show it:\n{printed}" if printed.strip() else None
    return difference(expected, printed) or None


def _without_figures(text: str) -> str:
    """Every number as ``#``, with the spaces before it, which depend on its width."""
    return re.sub(r" *\d[\d,.]*(?<=\d)", " #", text)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _pattern(line: str) -> str:
    return r".*(?:\n.*)*?" if line.strip() == ANYTHING else "[^\n]+".join(map(re.escape, line.split(ANYTHING)))


if __name__ == "__main__":
    run_page(Path(sys.argv[1]), frozenset(sys.argv[2:]))
