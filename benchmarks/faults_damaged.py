"""Chunk files are flipped, cut and swapped, and the index scribbled on, at random."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults_setup import Answer, ask, chunk_text, equal, small_engine
from samkv_rag.exceptions import DamagedChunkWarning, DamagedIndexWarning
from samkv_rag.store import DiskStore
from samkv_rag.store.disk.index import INDEX_NAME
from samkv_rag.store.management.verification import verify

Damage = Callable[[random.Random, list[Path]], list[Path]]


def flip(chooser: random.Random, paths: list[Path]) -> list[Path]:
    """Change one byte of a file."""
    path = chooser.choice(paths)
    content = bytearray(path.read_bytes())
    content[chooser.randrange(len(content))] ^= chooser.randrange(1, 256)
    path.write_bytes(content)
    return [path]


def truncate(chooser: random.Random, paths: list[Path]) -> list[Path]:
    """Cut a file short, down to nothing at times."""
    path = chooser.choice(paths)
    content = path.read_bytes()
    path.write_bytes(content[: chooser.randrange(len(content))])
    return [path]


def swap(chooser: random.Random, paths: list[Path]) -> list[Path]:
    """Give two files each other's contents."""
    one, other = chooser.sample(paths, 2)
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    return [one, other]


_DAMAGES: dict[str, Damage] = {"flip": flip, "truncate": truncate, "swap": swap}


@dataclass
class Damaged:
    """How damage was met."""

    num_rounds: dict[str, int] = field(default_factory=dict)
    num_undetected: int = 0
    """Rounds in which ``verify`` did not name exactly the files damaged."""
    num_unreported: int = 0
    """Rounds in which answering did not warn of exactly these files, by name."""
    num_served: int = 0
    """Rounds in which a damaged chunk counted as a hit."""
    num_answers_differing: int = 0
    """Answers that are not those of a store without the chunk."""
    num_index_rounds: int = 0
    num_index_failures: int = 0
    """Rounds with a damaged index in which the store was unreadable or an answer differed."""
    num_index_repairs: int = 0

    @property
    def passed(self) -> bool:
        """All damage was detected and did no harm."""
        bad = (self.num_undetected, self.num_unreported, self.num_served, self.num_answers_differing)
        return not any((*bad, self.num_index_failures))


def damage_files(
    folder: Path, num_rounds: int, num_index_rounds: int = 0, num_chunks: int = 8, seed: int = 0
) -> Damaged:
    """Damage a store's files one round after the other, put right in between, and ask over all chunks each time."""
    case = _Case(folder, num_chunks)
    found, chooser, counts = Damaged(num_index_rounds=num_index_rounds), random.Random(seed), Counter[str]()
    for _ in range(num_rounds):
        kind = chooser.choice(list(_DAMAGES))
        counts[kind] += 1
        with case.restored():
            _meet_damage(case, _DAMAGES[kind](chooser, case.paths), found)
    for _ in range(num_index_rounds):
        with case.restored():
            _meet_damaged_index(case, chooser, found)
    found.num_rounds = dict(counts)
    return found


class _Case:
    """A store, what its files should hold, and the right answers."""

    def __init__(self, folder: Path, num_chunks: int) -> None:
        self.folder = folder
        self.texts = [chunk_text(number) for number in range(num_chunks)]
        with DiskStore(folder) as store:
            small_engine(store).add_chunks(self.texts, show_progress=False)
        self.paths = sorted(folder.rglob("*.safetensors"))
        self._contents = {path: path.read_bytes() for path in [*self.paths, folder / INDEX_NAME]}
        self._answers: dict[frozenset[Path], Answer] = {}

    def answer_without(self, absent: list[Path]) -> Answer:
        """The answer of a store in which these files are not."""
        if (key := frozenset(absent)) not in self._answers:
            for path in absent:
                path.unlink()
            with DiskStore(self.folder) as store:
                self._answers[key], *_ = ask(small_engine(store), self.texts)
        return self._answers[key]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """All files whole before, whatever happens to them inside."""
        for path in self.folder.glob(f"{INDEX_NAME}*"):
            path.unlink()
        for path, content in self._contents.items():
            path.write_bytes(content)
        yield


def _meet_damage(case: _Case, damaged: list[Path], found: Damaged) -> None:
    names = sorted(path.name for path in damaged)
    with warnings.catch_warnings(record=True) as warned, DiskStore(case.folder) as store:
        warnings.simplefilter("always")
        found.num_undetected += sorted(file.name for file in verify(store).damaged) != names
        answer, _, num_missed = ask(small_engine(store), case.texts)
    messages = [str(w.message) for w in warned if w.category is DamagedChunkWarning]
    found.num_unreported += sorted(message.split(":")[0] for message in messages) != names
    found.num_served += num_missed != len(damaged)
    with case.restored():
        found.num_answers_differing += not equal(answer, case.answer_without(damaged))


def _meet_damaged_index(case: _Case, chooser: random.Random, found: Damaged) -> None:
    """Scribble on up to 64 neighbouring bytes of the index; whatever it says then, answers are right."""
    path = case.folder / INDEX_NAME
    content = bytearray(path.read_bytes())
    start, length = chooser.randrange(len(content)), chooser.randint(1, 64)
    content[start : start + length] = chooser.randbytes(len(content[start : start + length]))
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with DiskStore(case.folder) as store:
                answer, *_ = ask(small_engine(store), case.texts)
        except Exception as error:  # whatever it is, the store could not be read
            print(f"index bytes {start} to {start + length}: {error!r}")
            found.num_index_failures += 1
            return
    found.num_index_repairs += any(w.category is DamagedIndexWarning for w in warned)
    with case.restored():
        found.num_index_failures += not equal(answer, case.answer_without([]))
