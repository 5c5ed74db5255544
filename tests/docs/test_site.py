"""The site builds without a warning, and asks nothing of another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_LOADED = re.compile(r"""<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=["']?(?://|https?:)[^>]*>""")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):")


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    import samkv_rag

    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {file.relative_to(tmp_path).as_posix(): file.read_text("utf-8") for file in tmp_path.rglob("*.html")}
    assert len(pages) >= 20
    for name, text in pages.items():
        assert not _LOADED.findall(text), name
        assert str(ROOT) not in text, name
        assert not _ROLE.search(text), name  # roles of another markup, which would stand there raw
    described = {found for text in pages.values() for found in re.findall(r'id="([\w.]+)"', text)}
    for public in set(samkv_rag.__all__) - {"__version__"}:
        assert {f"samkv_rag.{public}", f"{getattr(samkv_rag, public).__module__}.{public}"} & described, public
