"""Processes that ingest into one store are killed at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults_setup import ask, chunk_text, encoded_chunks, equal, small_engine
from samkv_rag.exceptions import DamagedChunkWarning, DamagedIndexWarning
from samkv_rag.store import DiskStore, MemoryStore
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.management.verification import verify

_LONGEST_LIFE_S = 0.08


@dataclass(frozen=True)
class Killed:
    """What was left of a store after its writers had been killed."""

    num_kills: int
    num_processes: int
    num_chunks_acknowledged: int
    """Whose ``put`` had returned before its process was killed."""
    num_lost: int
    """Of those, how many cannot be read afterwards."""
    num_wrong: int
    """Chunks read, during or afterwards, whose bytes are not those that were put."""
    num_reads_meanwhile: int
    num_damaged_files: int
    num_repairs_of_index: int
    num_indexed_by_verify: int
    """Chunks in flight: their file was in place, their line in the index was not."""
    num_leftovers_removed: int
    num_leftovers_remaining: int
    num_answers: int
    num_answers_differing: int

    @property
    def passed(self) -> bool:
        """Nothing acknowledged is lost, nothing is wrong, nothing is left behind."""
        bad = (self.num_lost, self.num_wrong, self.num_damaged_files, self.num_repairs_of_index)
        return not any((*bad, self.num_leftovers_remaining, self.num_answers_differing))


def kill_writers(
    folder: Path, num_kills: int, num_processes: int = 4, num_chunks: int = 200, num_answers: int = 20, seed: int = 0
) -> Killed:
    """Let processes put chunks into a store in ``folder``, kill one at a time, and look at what is there."""
    chunks = encoded_chunks([chunk_text(number) for number in range(num_chunks)])
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        acknowledged, num_reads, wrong = _kill_and_read(folder, chunks, num_kills, num_processes, seed)
        with DiskStore(folder / "store") as store:
            checked = verify(store)
            contents = {chunk.entry.key: _content(store, chunk) for chunk in chunks}
        differing = _differing_answers(folder / "store", num_chunks, num_answers, seed)
    expected = {chunk.entry.key: chunk.data for chunk in chunks}
    return Killed(
        num_kills=num_kills,
        num_processes=num_processes,
        num_chunks_acknowledged=len(acknowledged),
        num_lost=sum(contents[chunks[number].entry.key] is None for number in acknowledged),
        num_wrong=wrong + sum(data not in (None, expected[key]) for key, data in contents.items()),
        num_reads_meanwhile=num_reads,
        num_damaged_files=len(checked.damaged) + sum(w.category is DamagedChunkWarning for w in warned),
        num_repairs_of_index=sum(w.category is DamagedIndexWarning for w in warned),
        num_indexed_by_verify=checked.lines_corrected,
        num_leftovers_removed=len(checked.leftovers_removed),
        num_leftovers_remaining=sum(1 for _ in folder.rglob(".writing-*")),
        num_answers=num_answers,
        num_answers_differing=differing,
    )


def _kill_and_read(
    folder: Path, chunks: Sequence[EncodedChunk], num_kills: int, num_processes: int, seed: int
) -> tuple[set[int], int, int]:
    """Numbers of the chunks acknowledged, how many chunks were read meanwhile, and how many of them wrong."""
    # This process opens no store itself: SQLite does not like to be forked with a file open.
    chooser, log = random.Random(seed), folder / "acknowledged"
    reader = _start_reader(folder, chunks)
    writers = [_start_writer(folder / "store", chunks, slot, num_processes, log) for slot in range(num_processes)]
    for _ in range(num_kills):
        time.sleep(chooser.uniform(0.0, _LONGEST_LIFE_S))
        slot = chooser.randrange(num_processes)
        _kill(writers[slot])
        writers[slot] = _start_writer(folder / "store", chunks, slot, num_processes, log)
    for writer in writers:
        _kill(writer)
    (folder / "stop").touch()
    if os.waitpid(reader, 0)[1]:
        raise RuntimeError("the reader failed while writers were killed")
    reads, wrong = json.loads((folder / "reads").read_text())
    return {int(line) for line in log.read_text().split()}, reads, wrong


def _start_reader(folder: Path, chunks: Sequence[EncodedChunk]) -> int:
    """Fork a process that reads chunks at random, and notes how many and how many wrong, until it is stopped."""
    process = os.fork()
    if process:
        return process
    with suppress(BaseException), warnings.catch_warnings():
        warnings.simplefilter("error")
        store, chooser, reads, wrong = DiskStore(folder / "store"), random.Random(0), 0, 0
        while not (folder / "stop").exists():
            chunk = chooser.choice(chunks)
            wrong += _content(store, chunk) not in (None, chunk.data)
            reads += 1
        (folder / "reads").write_text(json.dumps([reads, wrong]))
        os._exit(0)
    os._exit(1)


def _start_writer(folder: Path, chunks: Sequence[EncodedChunk], slot: int, num_slots: int, log: Path) -> int:
    """Fork a process that puts every ``num_slots``-th chunk, over and over, from a random one on."""
    process = os.fork()
    if process:
        return process
    with suppress(BaseException):
        own = range(slot, len(chunks), num_slots)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        store, start = DiskStore(folder), random.SystemRandom().randrange(len(own))
        while True:
            for number in (*own[start:], *own[:start]):
                store.put_encoded(chunks[number])
                os.write(descriptor, f"{number}\n".encode())
    os._exit(1)


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(
            f"a writer ended by itself, with status {status}; its puts did not go on until it was killed"
        )


def _content(store: DiskStore, chunk: EncodedChunk) -> bytes | None:
    found = store.fetch(chunk.entry.key, chunk.fingerprint)
    return None if found is None else found.data


def _differing_answers(folder: Path, num_chunks: int, num_answers: int, seed: int) -> int:
    """How many answers from the store are not those of an engine that computes all by itself."""
    differing, chooser = 0, random.Random(seed)
    with DiskStore(folder) as store:
        stored, fresh = small_engine(store), small_engine(MemoryStore())
        for _ in range(num_answers):
            texts = [chunk_text(number) for number in chooser.sample(range(num_chunks), 4)]
            differing += not equal(ask(stored, texts)[0], ask(fresh, texts)[0])
    return differing
