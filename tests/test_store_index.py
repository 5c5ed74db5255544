"""The disk store's index: lost, damaged, of an earlier release, shared with processes that come and go."""

from __future__ import annotations

import os
import sqlite3
import warnings
from pathlib import Path

import pytest

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag.exceptions import DamagedIndexWarning, StoreFormatError
from samkv_rag.store import DiskStore, Entry
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.disk import index_references, index_table
from samkv_rag.store.disk.index_table import StoredChunk

TEXTS = [f"text number {i} of the store" for i in range(3)]
_VERSION_1 = """
CREATE TABLE chunks (
    mark INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, fingerprint TEXT NOT NULL,
    text_digest TEXT NOT NULL, prefix TEXT NOT NULL, suffix TEXT NOT NULL, num_chars INTEGER NOT NULL,
    num_tokens INTEGER NOT NULL, layout TEXT NOT NULL, num_bytes INTEGER NOT NULL
);
CREATE TABLE last_removal (id INTEGER PRIMARY KEY CHECK (id = 1), mark INTEGER NOT NULL);
PRAGMA user_version = 1;
"""


@pytest.fixture
def store(tmp_path: Path) -> DiskStore:
    filled = DiskStore(tmp_path / "store")
    for text in TEXTS:
        filled.put(make_entry(text), make_cache())
    return filled


def entries(store: DiskStore, fingerprint: str = FINGERPRINT) -> list[Entry]:
    return (store.changes(fingerprint, 0) or ([], 0))[0]


def same(found: list[Entry]) -> bool:
    return sorted(entry.key for entry in found) == sorted(make_entry(text).key for text in TEXTS)


def remove_index(store: DiskStore) -> None:
    for path in store.folder.glob("index.sqlite*"):
        path.unlink()


def test_a_lost_index_is_made_again_from_the_files(store: DiskStore) -> None:
    before = entries(store)
    store.close()
    remove_index(store)
    with pytest.warns(DamagedIndexWarning, match="made again from 3 chunk files"):
        again = DiskStore(store.folder)
    assert sorted(entries(again), key=lambda e: e.key) == sorted(before, key=lambda e: e.key)
    assert again.nbytes() == store.files.path(before[0].key).stat().st_size * 3


def test_an_emptied_index_is_made_again(store: DiskStore) -> None:
    store.close()
    (store.folder / "index.sqlite").write_bytes(b"")
    with pytest.warns(DamagedIndexWarning):
        assert same(entries(DiskStore(store.folder)))


@pytest.mark.parametrize("part", [0, 0.2, 0.6])
def test_an_overwritten_index_is_made_again(store: DiskStore, part: float) -> None:
    store.close()
    path = store.folder / "index.sqlite"
    content = bytearray(path.read_bytes())
    start = int(len(content) * part)
    content[start : start + 5000] = os.urandom(5000)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedIndexWarning)
        again = DiskStore(store.folder)
        again.put(make_entry("a text that came later"), make_cache())
        assert {make_entry("a text that came later").key} <= {entry.key for entry in entries(again)}
        again.index.rebuild()
    assert len(entries(again)) == 4


def test_a_store_that_is_open_changes_over_to_the_new_index(store: DiskStore) -> None:
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    remove_index(store)
    with pytest.warns(DamagedIndexWarning):
        other = DiskStore(store.folder)
    other.put(make_entry("a text that came later"), make_cache())
    assert store.changes(FINGERPRINT, mark) is None, "marks of another index mean nothing"
    assert len(entries(store)) == 4
    store.remove([make_entry(TEXTS[0]).key])
    assert len(entries(other)) == 3


def test_damage_found_in_use_is_repaired_at_once(store: DiskStore) -> None:
    store.references(FINGERPRINT)
    with sqlite3.connect(store.folder / "index.sqlite") as index:
        index.execute("UPDATE kinds SET layout = 'no layout'")
    with pytest.warns(DamagedIndexWarning, match="a row is malformed"):
        assert same(entries(store))


def test_references_that_can_be_read_survive_a_rebuild(store: DiskStore) -> None:
    key = make_entry(TEXTS[0]).key
    store.refer(FINGERPRINT, {"one": key})
    assert store.index.rebuild() == 3
    assert store.references(FINGERPRINT) == {"one": key}
    assert store.release(FINGERPRINT, ["one"]) == 1


def test_files_without_an_entry_are_left_out_of_a_rebuilt_index_and_still_read(store: DiskStore) -> None:
    """The first release wrote such files; damaged ones are left out too."""
    bare = make_entry("a text without its entry")
    store.put(bare, make_cache())
    path = store.files.path(bare.key)
    path.write_bytes(path.read_bytes().replace(b'"entry"', b'"other"'))
    assert store.index.rebuild() == 3
    assert same(entries(store))


def test_the_first_releases_index_is_migrated(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        store.put(make_entry(TEXTS[0]), make_cache())
    remove_index(store)
    entry = make_entry(TEXTS[0])
    known = (entry.key, FINGERPRINT, entry.text_digest, entry.prefix, entry.suffix, entry.num_chars, entry.num_tokens)
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.executescript(_VERSION_1)
        row = (*known, entry.layout.to_json(), 1234)
        index.execute(f"INSERT INTO chunks VALUES (7{', ?' * 9})", row)
    again = DiskStore(tmp_path)
    (found,) = entries(again)
    assert (found.key, found.prefix, found.layout, found.origin.model) == (
        entry.key,
        entry.prefix,
        entry.layout,
        FINGERPRINT,
    )
    assert again.nbytes() == 1234
    assert again.changes(FINGERPRINT, 7) is None
    again.put(make_entry(TEXTS[1]), make_cache())
    assert len(entries(again)) == 2
    again.close()
    assert len(entries(DiskStore(tmp_path))) == 2


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("CREATE TABLE notes (text)")
    with pytest.raises(StoreFormatError, match="another program's database"):
        DiskStore(tmp_path)
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        assert index.execute("SELECT count(*) FROM notes").fetchone() == (0,)


def test_everything_is_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = DiskStore(tmp_path / "store")
        store.put(make_entry(TEXTS[0]), make_cache())
    finally:
        os.umask(before)
    found = list((tmp_path / "store").rglob("*"))
    assert {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm"} <= {path.name for path in found}
    for path in [tmp_path / "store", *found]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_texts_with_lone_surrogates_are_stored_and_found_again(tmp_path: Path) -> None:
    entry = make_entry("\ud800 a text that no file can hold \udfff")
    with DiskStore(tmp_path) as store:
        store.put(entry, make_cache())
        assert entries(store) == [entry]
        assert store.index.rebuild() == 1
        assert entries(store) == [entry]


def test_removals_of_one_model_do_not_disturb_another(store: DiskStore) -> None:
    other = "b" * 64
    store.put(make_entry(TEXTS[0], other), make_cache(fingerprint=other))
    _, mark = store.changes(other, 0) or ([], 0)
    store.remove([make_entry(TEXTS[0]).key])
    assert store.changes(other, mark) is not None
    assert store.changes(FINGERPRINT, mark) is None


def test_a_forked_process_gets_a_connection_of_its_own(store: DiskStore) -> None:
    child = os.fork()
    if child == 0:
        store.put(make_entry("a text from the child"), make_cache())
        os._exit(0 if len(entries(store)) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(entries(store)) == 4


def test_what_another_store_encoded_is_indexed_the_same(store: DiskStore, tmp_path: Path) -> None:
    entry = make_entry(TEXTS[0])
    fetched = store.fetch(entry.key, FINGERPRINT)
    assert fetched == EncodedChunk(entry, FINGERPRINT, store.files.path(entry.key).read_bytes())
    with DiskStore(tmp_path / "other") as other:
        other.put_encoded(fetched)
        assert entries(other) == [entry]


def test_what_is_written_while_another_process_makes_the_index_again_is_not_lost(store: DiskStore) -> None:
    """The other process has read the old index before this one's transaction ends."""
    other, entry = DiskStore(store.folder), make_entry("a text that came meanwhile")
    insert = index_table.insert

    def insert_late(index: sqlite3.Connection, chunk: StoredChunk) -> None:
        insert(index, chunk)
        if not under_way:
            under_way.append(True)
            rebuilt.append(other.index.rebuild())

    under_way: list[bool] = []
    rebuilt: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_table, "insert", insert_late)
        store.put(entry, make_cache())
    assert entry.key in {e.key for e in entries(other)} and rebuilt
    assert store.nbytes() == other.nbytes() == sum(path.stat().st_size for path in store.files.files())


def test_a_reference_made_while_another_process_makes_the_index_again_is_not_lost(store: DiskStore) -> None:
    other, key = DiskStore(store.folder), make_entry(TEXTS[0]).key

    def point_late(index: sqlite3.Connection) -> None:
        index_references.point(index, FINGERPRINT, {"node": key})
        if not rebuilt:
            rebuilt.append(other.index.rebuild())

    rebuilt: list[int] = []
    store.index.write(point_late)
    assert rebuilt == [3]
    assert other.references(FINGERPRINT) == store.references(FINGERPRINT) == {"node": key}
