"""A disk that is full: ingestion says so, questions are answered, nothing stored is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults_setup import ask, chunk_text, equal, small_engine
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import StoreFullError
from samkv_rag.store import DiskStore, MemoryStore
from samkv_rag.store.management.verification import verify

_ASKED = 6


@dataclass(frozen=True)
class FullDisk:
    """What happened on a disk that could not hold all chunks."""

    num_stored: int
    """Chunks that fitted."""
    said_so: bool
    """Ingestion ended with a StoreFullError."""
    num_hit: int
    """Of the first chunks, those served from the full disk."""
    num_missed: int
    """Chunks for which there was no room, computed on the spot."""
    num_answers_differing: int
    num_damaged_files: int
    num_leftovers: int
    num_hit_after_restart: int
    """As ``num_hit``, of a store that was opened on the full disk."""
    stored_again_after_freeing: bool

    @property
    def passed(self) -> bool:
        """Ingestion said so, and nothing else was the worse for it."""
        good = (self.said_so, self.num_stored, self.num_missed, self.stored_again_after_freeing)
        bad = (self.num_answers_differing, self.num_damaged_files, self.num_leftovers)
        return all(good) and not any(bad) and self.num_hit == self.num_hit_after_restart == _ASKED


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system in memory of so many bytes, mounted at ``folder``.

    Raises:
        PermissionError: this process may not mount one.
    """
    if not sys.platform.startswith("linux"):
        raise PermissionError("file systems in memory are mounted on Linux only")
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "samkv", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(f"no file system can be mounted here ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(folder: Path, num_chunks: int = 40) -> FullDisk:
    """Ingest into a store in ``folder``, a small disk, until no more fits, and go on using it."""
    texts = [chunk_text(number) for number in range(num_chunks)]
    fresh = small_engine(MemoryStore())
    store = DiskStore(folder / "store")
    engine = small_engine(store)
    said_so = _says_full(engine, texts)
    _fill_up(folder / "filler")
    stored = [text for text in texts if engine.has_chunk(text)]
    absent = [text for text in texts if text not in stored]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each chunk computed on the spot it is said that it found no room
        answers = [ask(engine, some) for some in (stored[:_ASKED], [*stored[:2], *absent[:2]])]
        checked = verify(store)
        store.close()
        with DiskStore(folder / "store") as again:  # as after a restart
            answers.append(ask(small_engine(again), stored[:_ASKED]))
            (folder / "filler").unlink()
            stored_again = _stores_again(small_engine(again), stored)
    expected = [ask(fresh, some)[0] for some in (stored[:_ASKED], [*stored[:2], *absent[:2]], stored[:_ASKED])]
    return FullDisk(
        num_stored=len(stored),
        said_so=said_so,
        num_hit=answers[0][1],
        num_missed=answers[1][2],
        num_answers_differing=sum(not equal(one[0], other) for one, other in zip(answers, expected, strict=True)),
        num_damaged_files=len(checked.damaged),
        num_leftovers=len(checked.leftovers_removed) + sum(1 for _ in folder.rglob(".writing-*")),
        num_hit_after_restart=answers[2][1],
        stored_again_after_freeing=stored_again,
    )


def _says_full(engine: SamKVEngine, texts: list[str]) -> bool:
    try:
        engine.add_chunks(texts, show_progress=False)
    except StoreFullError:
        return True
    return False


def _fill_up(path: Path) -> None:
    """Leave not a byte free."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            while True:
                try:
                    file.write(os.urandom(size))
                except OSError:
                    break


def _stores_again(engine: SamKVEngine, stored: list[str]) -> bool:
    engine.remove_chunks(stored[:2])
    engine.add_chunks(stored[:1], show_progress=False)
    return engine.has_chunk(stored[0]) and not engine.has_chunk(stored[1])
