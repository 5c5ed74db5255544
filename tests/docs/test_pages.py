"""Every snippet of every page does what the page says, and every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from docs.snippets import run, snippets
from markdown_it import MarkdownIt
from markdown_it.token import Token

from support import servers

ROOT = Path(__file__).parents[2]

SERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "redis": lambda: servers.redis_server(port=6379),
    "s3": lambda: servers.s3_server(port=9000),
}
READ = ("README.md", "docs/**/*.md", "integrations/*/README.md", "apps/README.md")
PAGES = sorted(page for pattern in READ for page in ROOT.glob(pattern))
LINKED = ("apps", "benchmarks", "samkv_rag")  # what snippets read of a clone
RUNNER = Path(__file__).with_name("snippets.py")
MOST_NOT_RUN = 5


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(not one.not_run for one in snippets(page))], ids=name)
def test_snippets_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    from samkv_apps.models import language_model

    found = snippets(page)
    model = language_model(say=print)  # the first use of it prints more
    (tmp_path / "HuggingFaceTB").mkdir()
    (tmp_path / "HuggingFaceTB" / "SmolLM2-135M-Instruct").symlink_to(model)  # the hub's id, without the hub
    for folder in LINKED:
        (tmp_path / folder).symlink_to(ROOT / folder)
    missing: dict[str, str] = {}
    with ExitStack() as running:
        needed = {snippet.needs for snippet in found if snippet.needs}
        for server in sorted(needed):
            try:
                running.enter_context(SERVERS[server]())
            except (pytest.skip.Exception, OSError) as error:
                missing[server] = str(error)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TQDM_DISABLE": "1", "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(RUNNER), str(page), *sorted(needed - set(missing))]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if missing:
        pytest.skip(f"not all was run: {missing}")


def test_hardly_anything_is_left_out() -> None:
    every = [(name(page), snippet) for page in PAGES for snippet in snippets(page)]
    marked = [f"{page}:{snippet.line}" for page, snippet in every if snippet.not_run not in ("", "installs")]
    assert len(marked) <= MOST_NOT_RUN, marked
    assert {snippet.needs for _, snippet in every} <= {"", *SERVERS}


@pytest.mark.parametrize("page", sorted({*PAGES, *ROOT.glob("cookbook/*.md"), *ROOT.glob("*.md")}), ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in _links(page) if not _leads_somewhere(page, link)]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n", ""),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", r"page\.md:1: "),
        ("```python\nprint('in 2 s\\n1\\n2\\nend ')\n```\n\n```text\nin … s\n…\nend\n```\n", ""),
        ("```python\nprint('a\\nb')\n```\n\n```text\na … b\n```\n", r"page\.md:1: "),
        ("```python\nprint('abc')\n```\n\n```text\na.c\n```\n", r"page\.md:1: "),
        ("```python\nprint(1)\n```\n", "does not show it"),
        ("\n```python\n1 / 0\n```\n", r"page\.md:2: ZeroDivisionError"),
        ("<!-- not run: it fails -->\n```python\n1 / 0\n```\n", ""),
        ("<!-- needs: s3 -->\n```python\n1 / 0\n```\n", ""),
        ("```bash\necho 12 a\n```\n\n<!-- figures differ -->\n```text\n7 a\n```\n", ""),
        ("```bash\necho It is b, 7\n```\n\n<!-- words differ: is b -->\n```text\nThis is b, 8\n```\n", ""),
        ("```bash\necho It is c\n```\n\n<!-- words differ: is b -->\n```text\nThis is b\n```\n", r"page\.md:1: "),
        ("```console\n$ echo a \\\n    b\na b\n$ echo c\nd\n```\n", r"\$ echo c"),
        ("```bash\nfalse\n```\n", "status 1"),
    ],
)
def test_a_page_is_run_in_order(text: str, wrong: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=wrong) if wrong else nullcontext():
        run(page)


@cache
def _parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _links(page: Path) -> Iterator[str]:
    for token in _parsed(page):
        for child in token.children or ():
            link = str(child.attrGet("href") or child.attrGet("src") or "")
            if link and not re.match(r"[a-z][a-z0-9+.-]*:|//", link):
                yield link


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = unquote(link).partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or target.suffix != ".md" or anchor in _anchors(target))


def _anchors(page: Path) -> set[str]:
    """A page's headings as GitHub names them in links."""
    inline = [after for token, after in pairwise(_parsed(page)) if token.type == "heading_open"]
    titles = ("".join(child.content for child in title.children or ()) for title in inline)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
