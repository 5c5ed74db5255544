"""The fault suite with small counts; ``python -m benchmarks.faults`` runs the full ones."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import faults
from benchmarks import store as store_benchmark
from benchmarks.faults_damaged import Damaged, damage_files
from benchmarks.faults_full_disk import fill_disk, small_disk
from benchmarks.faults_killed import kill_writers
from benchmarks.faults_shared import share_folder

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="writers to be killed are forked")


@needs_fork
def test_killed_writers_lose_nothing_and_leave_nothing_wrong(tmp_path: Path) -> None:
    found = kill_writers(tmp_path, num_kills=12, num_chunks=24, num_answers=2)
    assert found.passed, found
    assert found.num_chunks_acknowledged > 0 and found.num_reads_meanwhile > 0


@needs_fork
def test_processes_that_share_a_folder_lose_nothing(tmp_path: Path) -> None:
    found = share_folder(tmp_path, num_chunks=12)
    assert found.passed, found
    assert found.num_chunks == 12


def test_damaged_files_are_named_missed_and_harmless(tmp_path: Path) -> None:
    found = damage_files(tmp_path, num_rounds=12, num_index_rounds=6, num_chunks=4)
    assert found.passed, found
    assert sum(found.num_rounds.values()) == 12


def test_on_a_full_disk_ingestion_says_so_and_questions_are_answered(tmp_path: Path) -> None:
    try:
        with small_disk(tmp_path, 3_000_000):
            found = fill_disk(tmp_path)
    except PermissionError as error:
        pytest.skip(str(error))
    assert found.passed, found


def test_the_suite_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--kills", "1", "--damages", "1", "--index-damages", "1", "--json", str(tmp_path / "faults.json")]
    with pytest.raises(SystemExit) as exit_info:
        faults.main(arguments)
    assert exit_info.value.code == 0
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["killed"]["num_kills"] == found["damaged"]["num_index_rounds"] == 1
    assert "full_disk: " in capsys.readouterr().out


def test_a_loss_is_no_pass() -> None:
    whole = Damaged()
    assert whole.passed
    assert not replace(whole, num_served=1).passed
    assert not replace(whole, num_index_failures=1).passed


def test_opening_a_store_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    arguments = ["open", "--num-chunks", "50", "--rounds", "1", "--folder", str(tmp_path), "--json", str(path)]
    store_benchmark.main(arguments)
    figures = json.loads(path.read_text())["open"]
    assert figures["num_chunks"] == 50
    assert 0 < figures["open_s"] < figures["open_and_list_s"] < figures["open_until_prompts_are_read_s"]
