"""What the package offers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import langchain_samkv


def test_every_public_name_is_there() -> None:
    assert langchain_samkv.__all__ == ["ChatSamKV", "SamKVRetriever", "SamKVVectorStore"]
    assert all(getattr(langchain_samkv, name) for name in langchain_samkv.__all__)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, langchain_samkv; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
