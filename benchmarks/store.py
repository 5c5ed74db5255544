"""Times of the disk store.

    python -m benchmarks.store [PART ...] [--json FILE]

Parts: ``read``, see :mod:`benchmarks.store_reading`; ``open``, see :mod:`benchmarks.store_opening`. One
thread, on the CPU; caches have random contents.
What is in the JSON file already of other parts stays there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import store_opening, store_reading
from benchmarks.machine import describe_machine

PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "read": store_reading.measure,
    "open": store_opening.measure,
}
"""By name, functions that measure, print a line as soon as it is known and return what goes into the JSON file."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts asked for, print them and write JSON where asked to."""
    options = _options(arguments)
    torch.set_num_threads(1)
    machine = describe_machine()
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    for part in options.parts:
        figures = {"machine": machine, **PARTS[part](options)}
        if options.json is not None:
            known = json.loads(options.json.read_text()) if options.json.exists() else {}
            options.json.write_text(json.dumps({**known, part: figures}, indent=2) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--folder", type=Path, help="for the stores; default: the temporary folder")
    parser.add_argument("--rounds", type=int, default=20, help="the best of so many is reported")
    parser.add_argument("--shape", default="Qwen2.5-0.5B", choices=["Qwen2.5-0.5B", "tiny"])
    parser.add_argument("--num-chunks", type=int, default=100_000, help="of the store that is opened")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    options.parts = options.parts or list(PARTS)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}; known are {', '.join(PARTS)}")
    return options


if __name__ == "__main__":
    main()
