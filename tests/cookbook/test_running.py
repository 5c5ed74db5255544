"""The runner itself: a fresh kernel in the given folder, a limit, and nothing in the result that changes by itself."""

# mypy: disable-error-code="no-untyped-call,import-untyped"

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import nbformat.v4 as v4
import pytest

from cookbook import run


def notebook_of(*sources: str) -> Any:
    return v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])


def test_cells_run_offline_in_the_folder_and_give_what_does_not_change(tmp_path: Path) -> None:
    html = "from IPython.display import HTML\nHTML('<p>1</p>')"  # in words: an object and its address
    offline = "import os\nprint(os.environ['HF_HUB_OFFLINE'])"
    notebook = notebook_of("open('made', 'w').close()", "print(1, flush=True)\nprint(2)", "3", html, offline)
    run.execute(notebook, tmp_path)
    run.normalise(notebook)
    assert [file.name for file in tmp_path.iterdir()] == ["made"]
    joined, number, shown, told = ([dict(output) for output in cell.outputs] for cell in notebook.cells[1:])
    assert [output["text"] for output in joined + told] == ["1\n2\n", "1\n"]
    assert [output["data"] for output in number + shown] == [{"text/plain": "3"}, {"text/html": "<p>1</p>"}]


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


def test_prose_is_taken_over_where_the_code_is_as_it_was(tmp_path: Path) -> None:
    script = tmp_path / "00_now.py"
    script.write_text(cells("Old", "print(2)"), encoding="utf-8")
    notebook = run.read(script)
    notebook.cells[1].outputs = [v4.new_output("stream", text="2\n")]
    run.write(notebook, script)
    script.write_text(cells("New", "print(2)"), encoding="utf-8")
    run.take_prose(script)
    written = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert (written.cells[0].source, written.cells[1].outputs[0].text) == ("New", "2\n")
    script.write_text(cells("New", "print(3)"), encoding="utf-8")
    with pytest.raises(SystemExit, match="code has changed"):
        run.take_prose(script)
