"""A process with two stores on one folder writes, while others list and write, and is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks.faults_setup import chunk_text, encoded_chunks
from samkv_rag.store import DiskStore
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.management.inventory import list_chunks

_PATIENCE_S = 60


@dataclass(frozen=True)
class Shared:
    """What was left of what two processes had put, each chunk with a source."""

    num_chunks: int
    num_chunks_lost: int
    """Put, and not in the index afterwards."""
    num_sources_lost: int

    @property
    def passed(self) -> bool:
        """Nothing is lost."""
        return not (self.num_chunks_lost or self.num_sources_lost)


def share_folder(folder: Path, num_chunks: int = 24) -> Shared:
    """Have two processes put chunks into a store in ``folder``, and look at what is there."""
    # This process opens no store until both have ended: SQLite does not like to be forked with a file open.
    chunks, path = encoded_chunks([chunk_text(number) for number in range(num_chunks)]), folder / "store"
    context = multiprocessing.get_context("fork")
    turn, done = context.Event(), context.Event()
    first = context.Process(target=_write_and_be_killed, args=(path, chunks[::2], turn, done))
    other = context.Process(target=_write_in_turn, args=(path, chunks[1::2], turn, done))
    for process in (first, other):
        process.start()
    for process in (first, other):
        process.join(2 * _PATIENCE_S)
    if (first.exitcode, other.exitcode) != (-signal.SIGKILL, 0):
        raise RuntimeError(f"a writer failed: exit codes {first.exitcode} and {other.exitcode}")
    with DiskStore(path) as store:
        known = {chunk.entry.key for chunk in list_chunks(store)}
        sources = store.references(chunks[0].fingerprint)
    return Shared(
        num_chunks=len(chunks),
        num_chunks_lost=sum(chunk.entry.key not in known for chunk in chunks),
        num_sources_lost=sum(sources.get(chunk.entry.text_digest) != chunk.entry.key for chunk in chunks),
    )


def _write_and_be_killed(path: Path, chunks: Sequence[EncodedChunk], turn: Event, done: Event) -> None:
    """Two stores, as two engines on one folder have."""
    first, second = DiskStore(path), DiskStore(path)
    third = len(chunks) // 3
    _put(first, chunks[:third])
    command = [sys.executable, "-m", "samkv_rag.cli", "store", "stat", "--store", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    _put(second, chunks[third : 2 * third])
    turn.set()
    if done.wait(_PATIENCE_S):
        _put(first, chunks[2 * third :])
        os.kill(os.getpid(), signal.SIGKILL)


def _write_in_turn(path: Path, chunks: Sequence[EncodedChunk], turn: Event, done: Event) -> None:
    if turn.wait(_PATIENCE_S):
        with DiskStore(path) as store:
            _put(store, chunks)
        done.set()


def _put(store: DiskStore, chunks: Sequence[EncodedChunk]) -> None:
    for chunk in chunks:
        store.put_encoded(chunk)
        store.refer(chunk.fingerprint, {chunk.entry.text_digest: chunk.entry.key})
