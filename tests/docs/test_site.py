"""The site builds without a warning, and asks nothing of another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pages

pytestmark = pytest.mark.slow
_LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?(?://|https?:)[^>]*>""")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):")
LEAST_PAGES = 20


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=pages.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def texts(site: Path) -> dict[str, str]:
    """Every page, by its name."""
    found = {file.relative_to(site).as_posix(): file.read_text(encoding="utf-8") for file in site.rglob("*.html")}
    assert len(found) >= LEAST_PAGES
    return found


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loaded = {name: _LOADED.findall(text) for name, text in texts(site).items()}
    assert not {name: tags for name, tags in loaded.items() if tags}


def test_no_page_tells_where_it_was_built(site: Path) -> None:
    assert not [name for name, text in texts(site).items() if str(pages.ROOT) in text]


def test_docstrings_come_out_as_text(site: Path) -> None:
    """Roles of another markup would stand there raw."""
    assert not [name for name, text in texts(site).items() if _ROLE.search(text)]


def test_public_names_are_in_the_reference(site: Path) -> None:
    import samkv_rag

    reference = "".join(text for name, text in texts(site).items() if name.startswith("reference/"))
    described = set(re.findall(r'id="([\w.]+)"', reference))
    for name in set(samkv_rag.__all__) - {"__version__"}:
        home = getattr(samkv_rag, name).__module__
        assert {f"samkv_rag.{name}", f"{home}.{name}"} & described, name


def test_commands_are_in_the_reference(site: Path) -> None:
    text = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f"<code>samkv {command}</code>" in text for command in ("ask", "evaluate", "ingest", "store prune"))


def test_options_come_out_as_a_list(site: Path) -> None:
    text = (site / "reference" / "config.html").read_text(encoding="utf-8")
    assert "<dt><code>sequence_ratio</code></dt>" in text
