"""The runner itself: a fresh kernel in the given folder, a limit, and nothing in the result that changes by itself."""

# mypy: disable-error-code="no-untyped-call,import-untyped"

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import nbformat.v4 as v4
import pytest
from nbclient.exceptions import CellExecutionError

from cookbook import run


def notebook_of(*sources: str) -> Any:
    return v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])


def test_cells_run_in_the_folder_and_print_joined_text(tmp_path: Path) -> None:
    notebook = notebook_of("open('made', 'w').close()", "import sys\nprint(1, flush=True)\nprint(2)", "3")
    run.execute(notebook, tmp_path)
    run.normalise(notebook)
    assert [file.name for file in tmp_path.iterdir()] == ["made"]
    assert [output.text for output in notebook.cells[1].outputs] == ["1\n2\n"]
    assert notebook.cells[2].outputs[0].data == {"text/plain": "3"}


def test_what_is_shown_is_not_repeated_in_words() -> None:
    notebook = notebook_of("picture")
    data = {"text/html": "<p>1</p>", "text/plain": "Picture(path='/home/me')"}
    notebook.cells[0].outputs = [
        v4.new_output("execute_result", data),
        v4.new_output("execute_result", {"text/plain": "3"}),
    ]
    run.normalise(notebook)
    assert [output.data for output in notebook.cells[0].outputs] == [{"text/html": "<p>1</p>"}, {"text/plain": "3"}]


def test_kernel_is_offline_and_quiet(tmp_path: Path) -> None:
    notebook = notebook_of("import os\nprint(os.environ['HF_HUB_OFFLINE'], os.environ['TQDM_DISABLE'])")
    run.execute(notebook, tmp_path)
    assert notebook.cells[0].outputs[0].text == "1 1\n"


def test_failing_cell_stops_the_run(tmp_path: Path) -> None:
    notebook = notebook_of("assert 1 == 2, 'not equal'", "print('after')")
    with pytest.raises(CellExecutionError, match="not equal"):
        run.execute(notebook, tmp_path)
    assert not notebook.cells[1].outputs


def test_run_past_its_limit_is_ended(tmp_path: Path) -> None:
    notebook = notebook_of("import time\ntime.sleep(60)\nopen('slept', 'w').close()")
    with pytest.raises(TimeoutError):
        run.execute(notebook, tmp_path, limit_s=3.0)
    assert not list(tmp_path.iterdir())


def test_ids_follow_the_source_and_are_unique() -> None:
    one, other = notebook_of("a = 1", "a = 1", "b = 2"), notebook_of("new = 0", "a = 1", "a = 1", "b = 2")
    run.normalise(one)
    run.normalise(other)
    assert [cell.id for cell in one.cells] == [cell.id for cell in other.cells[1:]]
    assert len({cell.id for cell in one.cells}) == 3


def cells(prose: str, code: str) -> str:
    return f"# %% [markdown]\n# {prose}\n\n# %%\n{code}\n"


def write_pair(folder: Path, script: str, ran: str) -> Path:
    """A script, and the notebook of an earlier one with an output."""
    earlier, file = folder / "00_earlier.py", folder / "00_now.py"
    earlier.write_text(ran, encoding="utf-8")
    file.write_text(script, encoding="utf-8")
    notebook = run.read(earlier)
    notebook.cells[1].outputs = [v4.new_output("stream", text="2\n")]
    run.write(notebook, file)
    return file


def test_prose_is_taken_over_and_outputs_stay(tmp_path: Path) -> None:
    file = write_pair(tmp_path, cells("New", "print(2)"), cells("Old", "print(2)"))
    run.take_prose(file)
    written = nbformat.read(file.with_suffix(".ipynb"), as_version=4)
    assert written.cells[0].source == "New"
    assert written.cells[1].outputs[0].text == "2\n"


def test_prose_alone_is_not_taken_where_code_changed(tmp_path: Path) -> None:
    file = write_pair(tmp_path, cells("New", "print(3)"), cells("Old", "print(2)"))
    with pytest.raises(SystemExit, match="code has changed"):
        run.take_prose(file)


def test_unknown_notebook_is_refused() -> None:
    with pytest.raises(SystemExit, match="no notebook begins with 99"):
        run.main(["99"])
