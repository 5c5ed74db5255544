"""Every notebook of the cookbook is what its script says, has clean outputs, and runs from nothing."""

# mypy: disable-error-code="no-untyped-call,import-untyped"

from __future__ import annotations

import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupytext.compare import compare_notebooks

from cookbook import run

LIMIT_S = 900.0  # against one that hangs
SCRIPTS = [pytest.param(script, id=script.stem) for script in run.scripts()]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MACHINE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|Users|var|opt|mnt|private|work|usr)/|\b[A-Z]:\\| at 0x[0-9a-f]{6}")
HERE = (str(Path.home()), str(run.FOLDER.parent), tempfile.gettempdir(), socket.gethostname())
BAR = re.compile(r"\d+%\||[█▏▎▍]|\d+it/s")


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture
def notebook(script: Path) -> Any:
    """The committed .ipynb."""
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: Any) -> Iterator[str]:
    """Everything readable that the cells gave."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (str(data) for mime, data in output.get("data", {}).items() if not mime.startswith("image/"))


def test_every_notebook_has_its_script() -> None:
    assert {file.stem for file in run.FOLDER.glob("*.ipynb")} == {script.stem for script in run.scripts()} != set()


def test_script_and_notebook_are_the_same(script: Path, notebook: Any) -> None:
    compare_notebooks(notebook, run.read(script), fmt="py:percent", raise_on_first_difference=True)


def test_writing_again_changes_nothing(script: Path, notebook: Any, tmp_path: Path) -> None:
    run.normalise(notebook)
    run.write(notebook, tmp_path / script.name)
    written = (tmp_path / script.name).with_suffix(".ipynb")
    assert written.read_text(encoding="utf-8") == script.with_suffix(".ipynb").read_text(encoding="utf-8")


def test_cells_ran_in_order_and_what_prints_has_outputs(notebook: Any) -> None:
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    printing = [cell for cell in cells if re.search("^print", cell.source, re.MULTILINE)]
    assert printing
    assert all(cell.outputs for cell in printing)


def test_outputs_are_clean(notebook: Any) -> None:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    for text in texts(notebook):
        assert not MACHINE.search(text)
        assert not BAR.search(text)
        assert not [name for name in HERE if name in text]


def test_begins_with_what_it_needs_and_ends_with_what_to_try(notebook: Any) -> None:
    first, second, *_, last = notebook.cells
    assert first.source.startswith("# ")
    assert "pip install" in first.source + second.source
    assert not [cell.source for cell in code_cells(notebook) if re.search(r"^\s*[!%]", cell.source, re.MULTILINE)]
    assert last.cell_type == "markdown"
    assert last.source.startswith("## What to try next")
    assert LINK.search(last.source)


def test_relative_links_lead_somewhere(notebook: Any) -> None:
    targets = [target for cell in notebook.cells for target in LINK.findall(cell.source)]
    relative = [target.partition("#")[0] for target in targets if "://" not in target]
    assert not [target for target in relative if not (run.FOLDER / target).exists()]


@pytest.mark.slow
def test_runs_from_nothing(script: Path, tmp_path: Path) -> None:
    notebook = run.read(script)
    run.execute(notebook, tmp_path, LIMIT_S)
    run.normalise(notebook)
    test_outputs_are_clean(notebook)
    assert not list(tmp_path.iterdir())  # what it writes is in folders of its own, and temporary
