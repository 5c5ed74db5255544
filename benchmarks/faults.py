"""What a disk store does when processes share it and are killed, files are damaged and the disk is full.

    python -m benchmarks.faults [--kills 200] [--damages 1000] [--index-damages 300] [--json FILE]

A small model with random weights answers, so that every answer can be compared with that of an engine
which computes all by itself. Exit status 1 where anything stored was lost, anything wrong was served or
any damage went unnoticed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults_damaged import Damaged, damage_files
from benchmarks.faults_full_disk import FullDisk, fill_disk, small_disk
from benchmarks.faults_killed import Killed, kill_writers
from benchmarks.faults_shared import Shared, share_folder
from benchmarks.machine import describe_machine

_DISK_BYTES = 3_000_000
Outcome = Killed | Shared | Damaged | FullDisk


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suite, print each result as soon as it is known, and write JSON where asked to."""
    options = _options(arguments)
    torch.set_num_threads(1)
    machine, results = describe_machine(), {}
    for name, suite in _suites(options).items():
        started = time.perf_counter()
        results[name] = _run(name, suite)
        results[name]["elapsed_s"] = round(time.perf_counter() - started, 1)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": machine, "seed": options.seed, **results}, indent=2) + "\n")
    sys.exit(any(result.get("passed") is False for result in results.values()))


def _suites(options: argparse.Namespace) -> dict[str, Callable[[Path], Outcome]]:
    return {
        "killed": lambda folder: kill_writers(folder, options.kills, seed=options.seed),
        "shared": share_folder,
        "damaged": lambda folder: damage_files(folder, options.damages, options.index_damages, seed=options.seed),
        "full_disk": _on_a_small_disk,
    }


def _run(name: str, suite: Callable[[Path], Outcome]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = suite(Path(folder))
        except PermissionError as error:
            return {"skipped": str(error)}
    return {"passed": result.passed, **asdict(result)}


def _on_a_small_disk(folder: Path) -> FullDisk:
    with small_disk(folder, _DISK_BYTES):
        return fill_disk(folder)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="writers killed, four at a time at work")
    parser.add_argument("--damages", type=int, default=1000, help="byte flips, truncations and swapped files")
    parser.add_argument("--index-damages", type=int, default=300, help="times that the index is scribbled on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
