"""What only a store in a folder can do, or do wrong."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import DamagedChunkWarning
from samkv_rag.chunk_cache import Layout
from samkv_rag.exceptions import StoreError, StoreFormatError, StoreFullError
from samkv_rag.store import DiskStore
from samkv_rag.store.base import EncodedChunk
from samkv_rag.store.disk import chunk_folder, index_table
from samkv_rag.store.disk.index_table import StoredChunk
from samkv_rag.store.format import encoding as encoding_module
from samkv_rag.store.management.verification import verify


@pytest.fixture
def disk(tmp_path: Path) -> DiskStore:
    return DiskStore(tmp_path / "store")


def only_file(store: DiskStore) -> Path:
    (path,) = store.folder.rglob("*.safetensors")
    return path


def test_a_store_outlives_its_process(disk: DiskStore) -> None:
    entry = make_entry("a text of some length")
    disk.put(entry, make_cache())
    disk.close()
    with DiskStore(disk.folder) as again:
        assert again.open(entry.key, FINGERPRINT) is not None
        assert (again.changes(FINGERPRINT, 0) or ([], 0))[0] == [entry]


def test_two_stores_on_one_folder_see_each_other(disk: DiskStore) -> None:
    other = DiskStore(disk.folder)
    entry = make_entry("a text of some length")
    disk.put(entry, make_cache())
    assert (other.changes(FINGERPRINT, 0) or ([], 0))[0] == [entry]
    assert other.open(entry.key, FINGERPRINT) is not None


@pytest.mark.parametrize("flip", [0x01, 0x0F, 0x5A])
def test_any_flipped_byte_is_a_miss_that_names_the_file(disk: DiskStore, flip: int) -> None:
    entry = make_entry("a text of some length")
    disk.put(entry, make_cache())
    path = only_file(disk)
    content = path.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    for offset in [*range(8 + header_bytes), *range(8 + header_bytes, len(content), 97)]:
        if content[offset] ^ flip == content[offset] or (content[offset : offset + 1].isspace()):
            continue  # the padding behind the header means nothing
        damaged = bytearray(content)
        damaged[offset] ^= flip
        path.write_bytes(damaged)
        disk._verified.clear()
        with pytest.warns(DamagedChunkWarning, match=path.name):
            assert disk.open(entry.key, FINGERPRINT) is None, offset
    path.write_bytes(content)
    disk._verified.clear()
    assert disk.open(entry.key, FINGERPRINT) is not None


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_a_miss(disk: DiskStore, length: int) -> None:
    entry = make_entry("a text of some length")
    disk.put(entry, make_cache())
    path = only_file(disk)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.warns(DamagedChunkWarning, match=path.name):
        assert disk.open(entry.key, FINGERPRINT) is None


def test_a_file_of_another_chunk_is_a_miss(disk: DiskStore) -> None:
    mine, other = make_entry("the first of two texts"), make_entry("the second of two texts")
    disk.put(mine, make_cache(seed=1))
    disk.put(other, make_cache(seed=2))
    disk.files.path(mine.key).write_bytes(disk.files.path(other.key).read_bytes())
    with pytest.warns(DamagedChunkWarning, match="another chunk"):
        assert disk.open(mine.key, FINGERPRINT) is None


def test_a_file_of_another_format_version_is_a_miss(disk: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_entry("a text of some length")
    monkeypatch.setattr(encoding_module, "FORMAT_VERSION", "999")
    disk.put(entry, make_cache())
    monkeypatch.undo()
    with pytest.warns(DamagedChunkWarning, match="its format is '999', this release reads up to"):
        assert disk.open(entry.key, FINGERPRINT) is None


def test_a_deleted_file_is_a_miss_without_a_warning(disk: DiskStore) -> None:
    entry = make_entry("a text of some length")
    disk.put(entry, make_cache())
    only_file(disk).unlink()
    assert disk.open(entry.key, FINGERPRINT) is None


def test_a_failed_write_leaves_nothing_behind_and_keeps_the_old(
    disk: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry("a text of some length")
    disk.put(entry, make_cache(seed=1))

    def full(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunk_folder, "_write_all", full)
    with pytest.raises(StoreFullError, match="is full; free some space or prune the store"):
        disk.put(entry, make_cache(seed=2))
    assert len(list(disk.folder.rglob(".writing-*"))) == 0
    reader = disk.open(entry.key, FINGERPRINT)
    assert reader is not None
    assert torch.equal(reader.layer(0)[0], make_cache(seed=1).keys[0])


def test_files_are_private(disk: DiskStore) -> None:
    disk.put(make_entry("a text of some length"), make_cache())
    assert only_file(disk).stat().st_mode & 0o077 == 0
    assert (disk.folder / "index.sqlite").stat().st_mode & 0o077 == 0


def test_layers_are_owned_copies(disk: DiskStore) -> None:
    """A view of a mapped file would hold the whole file and change with it."""
    entry, cache = make_entry("a text of some length"), make_cache()
    disk.put(entry, cache)
    reader = disk.open(entry.key, FINGERPRINT)
    assert reader is not None
    keys, _ = reader.layer(1)
    assert keys.untyped_storage().nbytes() == 2 * cache.keys[1].nbytes


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreFormatError, match="cannot hold a store"):
        DiskStore(tmp_path / "file")


def test_another_database_in_place_of_the_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_text("certainly not a database " * 100)
    with pytest.raises(StoreFormatError, match="is not a samkv_rag index"):
        DiskStore(tmp_path)


def test_another_schema_version_is_refused(disk: DiskStore) -> None:
    disk.close()
    with sqlite3.connect(disk.folder / "index.sqlite") as index:
        index.execute("PRAGMA user_version = 77")
        index.execute("UPDATE store SET schema_version = 77")
    with pytest.raises(StoreFormatError, match="schema version 77, this release reads 2"):
        DiskStore(disk.folder)


def test_processes_ingest_into_one_folder(tmp_path: Path) -> None:
    processes = [in_process(lambda number=number: put_ten(tmp_path, number)) for number in range(3)]
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0, 0]
    assert len((DiskStore(tmp_path).changes(FINGERPRINT, 0) or ([], 0))[0]) == 30


def put_ten(folder: Path, number: int) -> None:
    store = DiskStore(folder)
    for i in range(10):
        store.put(make_entry(f"text {i} of process {number}, long"), make_cache())


def in_process(work: Callable[[], None]) -> int:
    """Fork a process that does ``work``; this one must have no store open."""
    process = os.fork()
    if process == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return process


def test_a_file_that_cannot_be_read_is_a_miss_on_the_way_to_another_store_too(disk: DiskStore) -> None:
    disk.put(make_entry("a text of the store"), make_cache())
    path = only_file(disk)
    path.unlink()
    path.mkdir()
    with pytest.warns(DamagedChunkWarning, match=f"{path.name}.*unreadable"):
        assert disk.fetch(path.stem, FINGERPRINT) is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_what_else_a_disk_refuses_is_a_store_error(disk: DiskStore, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    disk.put(make_entry("a text of the store"), make_cache())

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(StoreError, match=f"{os.strerror(code)}.*check"):
        disk.put(make_entry("another text of the store"), make_cache())
    monkeypatch.undo()
    assert disk.open(make_entry("a text of the store").key, FINGERPRINT) is not None


def test_verifying_lists_a_chunk_as_it_is_after_it_was_replaced_meanwhile(
    disk: DiskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make_entry("a text of the store")
    newer = replace(entry, layout=Layout(2, 2, 8, 1))
    disk.put(entry, make_cache())
    disk.remove([entry.key])
    disk.files.path(entry.key).write_bytes(EncodedChunk.of(entry, make_cache()).data)
    get = index_table.get

    def get_late(index: sqlite3.Connection, key: str) -> StoredChunk | None:
        monkeypatch.undo()
        line = get(index, key)
        DiskStore(disk.folder).put(newer, replace(make_cache(), layout=newer.layout))
        return line

    monkeypatch.setattr(index_table, "get", get_late)
    verify(disk)
    assert (disk.changes(FINGERPRINT, 0) or ([], 0))[0] == [newer]
