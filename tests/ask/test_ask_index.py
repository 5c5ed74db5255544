"""The index: where passages stand, which are nearest, and what becomes of a damaged file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from samkv_rag.ask import index as index_module
from samkv_rag.ask.index import DamagedIndexError, PassageIndex, Place, open_index
from samkv_rag.ask.nearest import Vectors, as_bytes, nearest
from samkv_rag.documents import Chunk
from samkv_rag.exceptions import DamagedIndexWarning, StoreError, StoreFullError


def unit(*values: float) -> Vectors:
    vector = np.array([values], dtype=np.float32)
    return vector / np.linalg.norm(vector)


def fill(index: PassageIndex) -> None:
    index.replace("/a.md", "1", [(Chunk("Alpha."), 2), (Chunk("Both."), 3)])
    index.replace("/b.pdf", "2", [(Chunk("Both.", page=7), 3)])
    index.add_vectors([("Alpha.", unit(1, 0)), ("Both.", unit(1, 1))])


def test_a_text_that_stands_twice_is_one_passage_with_two_places(index: PassageIndex) -> None:
    fill(index)
    assert index.digests() == {"/a.md": "1", "/b.pdf": "2"}
    alpha, both = index.passages()
    assert (alpha.text, alpha.num_tokens, alpha.places) == ("Alpha.", 2, (Place("/a.md"),))
    assert both.places == (Place("/a.md"), Place("/b.pdf", 7))


def test_the_nearest_come_first_with_their_cosines(index: PassageIndex) -> None:
    fill(index)
    found = index.search(unit(1, 0)[0], top_k=5)
    assert [passage.text for passage, _ in found] == ["Alpha.", "Both."]
    assert [score for _, score in found] == pytest.approx([1.0, 0.5**0.5])
    assert len(index.search(unit(1, 0)[0], top_k=1)) == 1


def test_a_file_that_changed_or_went_takes_its_passages_along(index: PassageIndex) -> None:
    fill(index)
    index.replace("/a.md", "3", [(Chunk("Alpha."), 2), (Chunk("New."), 2)])
    index.keep_only(["/a.md", "/b.pdf"])
    assert [passage.text for passage in index.passages()] == ["Alpha.", "New.", "Both."]
    assert index.not_embedded() == ["New."], "what stayed keeps its vectors"
    index.keep_only(["/a.md"])
    assert [passage.text for passage in index.passages()] == ["Alpha.", "New."]
    assert index.digests() == {"/a.md": "3"}


def test_search_equals_the_obvious_slow_path() -> None:
    random = np.random.default_rng(0)
    windows = [random.normal(size=(count, 16)).astype(np.float32) for count in random.integers(1, 4, size=200)]
    stored = [window / np.linalg.norm(window, axis=1, keepdims=True) for window in windows]
    query = stored[5][-1]
    scores = [max(float(vector @ query) for vector in vectors) for vectors in stored]
    expected = sorted(range(200), key=lambda i: -scores[i])[:10]
    found = nearest([as_bytes(vectors) for vectors in stored], query, 10)
    assert [i for i, _ in found] == expected
    assert expected[0] == 5
    assert [score for _, score in found] == pytest.approx([scores[i] for i in expected], abs=1e-6)


def test_nothing_stored_is_nothing_found() -> None:
    assert nearest([], unit(1, 0)[0], 3) == []


@pytest.mark.parametrize(
    "data", [b"", b"123", as_bytes(unit(1, 0))[:4], as_bytes(2 * unit(1, 0)), as_bytes(np.nan * unit(1, 0))]
)
def test_what_are_no_unit_vectors_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="vectors"):
        nearest([as_bytes(unit(1, 0)), data], unit(1, 0)[0], 3)


def test_it_is_there_when_opened_again_and_private(index: PassageIndex) -> None:
    fill(index)
    assert index.path.stat().st_mode & 0o077 == 0
    with open_index(index.path) as again:
        assert len(again.passages()) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no database at all, but long enough to be taken for one" * 20),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: execute(path, "DROP TABLE passages; CREATE TABLE passages (digest TEXT)"),
        lambda path: execute(path, "PRAGMA user_version = 99"),
        lambda path: execute(path, "UPDATE passages SET text = 'Forged.'"),
        lambda path: execute(path, "UPDATE passages SET vectors = zeroblob(8)"),
    ],
    ids=["noise", "cut", "column", "version", "text", "vectors"],
)
def test_damage_is_found_and_gives_way_to_a_new_index(index: PassageIndex, damage: object) -> None:
    fill(index)
    index.close()
    damage(index.path)  # type: ignore[operator]
    with pytest.raises(DamagedIndexError, match=str(index.path)), PassageIndex(index.path) as opened:
        opened.passages()
        opened.search(unit(1, 0)[0], 3)
    with pytest.warns(DamagedIndexWarning, match="made again from the files"):
        index_module.discard(index.path, DamagedIndexError("damaged"))
    with open_index(index.path) as new:
        fill(new)
        assert len(new.search(unit(1, 0)[0], 3)) == 2


def test_a_file_that_is_no_database_is_replaced_when_opened(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"something else " * 100)
    with pytest.warns(DamagedIndexWarning), open_index(tmp_path / "index.sqlite") as opened:
        assert opened.passages() == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [("database or disk is full", StoreFullError), ("unable to open database file", StoreError)],
)
def test_other_troubles_discard_nothing(index: PassageIndex, message: str, expected: type[Exception]) -> None:
    fill(index)
    with pytest.raises(expected, match=str(index.path)), index._transaction():
        raise sqlite3.OperationalError(message)
    assert len(index.passages()) == 2


def execute(path: Path, statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()
