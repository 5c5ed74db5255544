"""Run the cookbook: execute every `NN_name.py` and write it with its outputs to `NN_name.ipynb`.

    python cookbook/run.py          run all notebooks
    python cookbook/run.py 01 03    run those whose names begin with 01 or 03
    python cookbook/run.py --prose  update prose only; keep code and outputs

Edit the .py files. Outputs are written without times, random ids or versions, so two runs differ in figures only.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# No network, and no progress bars or notices in the outputs.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}

_SHOWN = {"image/png", "text/html"}


def scripts(prefixes: list[str] | None = None) -> list[Path]:
    """Return the notebooks' scripts in order, or those whose names begin with one of ``prefixes``."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    return [script for script in found if script.name.startswith(tuple(prefixes or ("",)))]


def read(script: Path) -> Any:
    """Return a script as a notebook without outputs."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def execute(notebook: Any, folder: Path, limit_s: float = 3600.0) -> None:
    """Run all cells in a fresh kernel in ``folder`` and put their outputs into the notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
        nbclient.exceptions.CellTimeoutError: the notebook took longer than ``limit_s`` seconds.
    """
    deadline = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as profile:  # without the user's start-up files
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            timeout_func=lambda cell: max(1.0, deadline - time.monotonic()),
            extra_arguments=["--log-level=ERROR"],
        )
        client.execute(env=os.environ | QUIET | {"IPYTHONDIR": profile})


def normalise(notebook: Any) -> None:
    """Remove what differs between two runs of an unchanged notebook."""
    notebook.metadata = nbformat.from_dict(METADATA)
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.id = f"{digest}-{seen[digest]}"
        seen[digest] += 1
        if cell.cell_type == "code":
            cell.outputs = _plain(cell.outputs)


def write(notebook: Any, script: Path) -> None:
    """Write a notebook next to its script."""
    nbformat.validate(notebook)
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def run(script: Path) -> None:
    """Execute one notebook in an empty folder and write it with its outputs."""
    notebook = read(script)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    normalise(notebook)
    write(notebook, script)


def take_prose(script: Path) -> None:
    """Update a notebook's prose and keep its outputs; its code must not have changed."""
    notebook, written = read(script), nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    cells, old_cells = _code_cells(notebook), _code_cells(written)
    if [cell.source for cell in cells] != [cell.source for cell in old_cells]:
        sys.exit(f"{script.stem}: code has changed; run it with python cookbook/run.py {script.stem}")
    for cell, old in zip(cells, old_cells, strict=True):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    normalise(notebook)
    write(notebook, script)


def main(arguments: list[str]) -> None:
    """Run the given notebooks or update their prose, and print how long each took."""
    prefixes = [argument for argument in arguments if argument != "--prose"]
    found = scripts(prefixes)
    if not found:
        sys.exit(f"no notebook begins with {', '.join(prefixes)}; there are {', '.join(s.stem for s in scripts())}")
    for script in found:
        started = time.perf_counter()
        (take_prose if "--prose" in arguments else run)(script)
        print(f"{script.stem}: {time.perf_counter() - started:.0f} s", flush=True)


def _code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _plain(outputs: list[Any]) -> list[Any]:
    """Drop the text form of pictures and pages, and join neighbouring outputs of one stream."""
    joined: list[Any] = []
    for output in outputs:
        if _SHOWN & set(output.get("data", ())):
            output.data.pop("text/plain", None)
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    main(sys.argv[1:])
