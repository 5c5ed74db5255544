"""Every snippet of every page does what the page says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pages
from checks import problems
from shell import RUN, commands, is_run
from snippets import Snippet, snippets

RUNNER = Path(__file__).with_name("run_page.py")
MOST_NOT_RUN = 3
LINKED = ("benchmarks", "samkv_rag")
"""Folders of a clone that snippets read."""

PAGES = [page for page in pages.user_pages() if snippets(page)]
every_page = pytest.mark.parametrize("page", PAGES, ids=pages.name)


@pytest.mark.slow
@every_page
def test_snippets_run_and_print_what_is_shown(page: Path, scratch: Path) -> None:
    needed = {snippet.needs for snippet in snippets(page) if snippet.needs}
    with pages.started(needed) as missing:
        done = run(page, scratch, *(needed - set(missing)))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if missing:
        pytest.skip(f"not all was run: {missing}")


@every_page
def test_what_is_not_run_is_right_as_far_as_one_can_see(page: Path) -> None:
    for snippet in shell(page):
        assert not [wrong for command in commands(snippet) for wrong in problems(command)], at(page, snippet)


@every_page
def test_a_block_is_run_as_a_whole_or_not_at_all(page: Path) -> None:
    """Else half of it would pass for run."""
    for snippet in shell(page):
        run_too = [command for command in commands(snippet) if command[0] in RUN]
        assert is_run(snippet) or not run_too, f"{at(page, snippet)}: {run_too} beside what is not run; split it"


def test_hardly_anything_is_left_out() -> None:
    marked = [at(page, snippet) for page in PAGES for snippet in snippets(page) if snippet.not_run]
    assert len(marked) <= MOST_NOT_RUN, marked


@every_page
def test_servers_are_known(page: Path) -> None:
    assert {snippet.needs for snippet in snippets(page)} <= {None, *pages.SERVERS}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """An empty folder with links to what a clone holds, the demo's model being at hand."""
    from samkv_apps.models import language_model

    language_model(say=print)  # the first use of it prints more
    for folder in LINKED:
        (tmp_path / folder).symlink_to(pages.ROOT / folder)
    return tmp_path


def run(page: Path, scratch: Path, *servers: str) -> subprocess.CompletedProcess[str]:
    """A page's snippets in a process of their own, in the folder ``scratch``."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # In bfloat16 the number of threads decides how sums are rounded, and so a word here and there.
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    environment = {**os.environ, **threads, "PATH": programs, "TQDM_DISABLE": "1", "COLUMNS": "100"}
    command = [sys.executable, str(RUNNER), str(page), *servers]
    return subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=1800)


def shell(page: Path) -> list[Snippet]:
    """A page's snippets that are not Python."""
    return [snippet for snippet in snippets(page) if snippet.language != "python"]


def at(page: Path, snippet: Snippet) -> str:
    """Where a snippet stands."""
    return f"{pages.name(page)}:{snippet.line}"
