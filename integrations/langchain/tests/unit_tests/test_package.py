"""What importing the package costs."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, langchain_samkv; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
