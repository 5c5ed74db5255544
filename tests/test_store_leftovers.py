"""What killed writers leave in a shared folder, and who takes it away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag.store import RemoteStore
from samkv_rag.store.remote.leftovers import LEFTOVER_AGE_S, remove_leftovers
from samkv_rag.store.shared.private_files import WRITING_PREFIX

ENTRY = make_entry("a text of some length")


def leave(folder: Path, name: str, age_s: float) -> Path:
    """What a writer killed so long ago would have left."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"half a chunk")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def places(folder: Path) -> list[Path]:
    return [folder, folder / "chunks" / "ab", folder / "index" / FINGERPRINT, folder / "references" / FINGERPRINT]


def test_a_writing_process_takes_away_what_killed_ones_left(folder: Path) -> None:
    old = [leave(place, f"{WRITING_PREFIX}{i}", LEFTOVER_AGE_S + 60) for i, place in enumerate(places(folder))]
    young = [leave(place, f"{WRITING_PREFIX}young{i}", 60) for i, place in enumerate(places(folder))]
    with RemoteStore(f"file://{folder}", refresh_s=0) as store:
        store.put(ENTRY, make_cache())
        deadline_s = time.monotonic() + 10
        while any(path.exists() for path in old) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert [path for path in old if path.exists()] == []
        assert all(path.exists() for path in young), "its writer may still be at work"
        assert store.open(ENTRY.key, FINGERPRINT) is not None


def test_only_temporary_files_go(folder: Path) -> None:
    with RemoteStore(f"file://{folder}") as store:
        store.put(ENTRY, make_cache())
    stored = [path for path in folder.rglob("*") if path.is_file()]
    for path in stored:
        os.utime(path, (0, 0))
    others = [leave(folder / "theirs", f"{WRITING_PREFIX}x", 10**8), leave(folder / "chunks", "ab.txt", 10**8)]
    elsewhere = leave(folder.parent / "elsewhere", f"{WRITING_PREFIX}x", 10**8)
    (folder / "chunks" / "cd").symlink_to(elsewhere.parent, target_is_directory=True)
    leftover = leave(folder / "chunks" / "ef", f"{WRITING_PREFIX}x", 10**8)
    assert remove_leftovers(folder) == 1
    assert not leftover.exists()
    assert all(path.exists() for path in [*stored, *others, elsewhere])


def test_reading_takes_nothing_away(folder: Path) -> None:
    with RemoteStore(f"file://{folder}") as store:
        store.put(ENTRY, make_cache())
    leftover = leave(folder / "chunks" / "ab", f"{WRITING_PREFIX}x", 10**8)
    with RemoteStore(f"file://{folder}") as store:
        assert store.open(ENTRY.key, FINGERPRINT) is not None
    assert leftover.exists()


def test_a_folder_that_cannot_be_listed_is_left(folder: Path) -> None:
    assert remove_leftovers(folder / "not there") == 0
