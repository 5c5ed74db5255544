"""One contract, run on every store; and what only a disk can do wrong."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from samkv_rag import DamagedChunkWarning, SamKVEngine
from samkv_rag.chunk_cache import ChunkCache, Layout, Means, chunk_key
from samkv_rag.exceptions import ConfigurationError, StoreFormatError, StoreFullError
from samkv_rag.prompt import describe
from samkv_rag.store import DiskStore, Entry, KVStore, MemoryStore, open_store
from samkv_rag.store import chunk_file as chunk_file_module

FINGERPRINT = "a" * 64


def make_cache(seed: int = 0, num_tokens: int = 7, fingerprint: str = FINGERPRINT) -> ChunkCache:
    torch.manual_seed(seed)
    keys, values = torch.randn(2, 3, 2, num_tokens, 8, dtype=torch.bfloat16)
    summary = Means(torch.randn(3, 2, 4, 8), torch.randn(3, 2, 8), torch.randn(3, 4, 8))
    return ChunkCache(
        torch.arange(num_tokens), keys, values, summary, Layout(4, 4, 8, 1), fingerprint, torch.randn(num_tokens, 16)
    )


def make_entry(text: str, fingerprint: str = FINGERPRINT) -> Entry:
    known = describe(text)
    key = chunk_key(fingerprint, known.text_digest)
    return Entry(key, known.text_digest, known.prefix, known.suffix, known.num_chars, 7, Layout(4, 4, 8, 1))


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> KVStore:
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "store")


def test_what_is_put_is_read_back_bit_by_bit(store: KVStore) -> None:
    entry, cache = make_entry("a text of some length"), make_cache()
    store.put(entry, cache)
    reader = store.open(entry.key, FINGERPRINT)
    assert reader is not None
    assert reader.layout == cache.layout
    assert torch.equal(reader.token_ids, cache.token_ids)
    for layer in range(3):
        for found, expected in zip(reader.layer(layer), cache.layer(layer), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    for name in Means.__annotations__:
        assert torch.equal(getattr(reader.means(), name), getattr(cache.summary, name))
    assert cache.hidden is not None
    assert torch.equal(reader.resume_hidden(), cache.hidden)


def test_absent_and_foreign_chunks_are_misses(store: KVStore) -> None:
    entry = make_entry("a text of some length")
    assert store.open(entry.key, FINGERPRINT) is None
    store.put(make_entry("a text of another model", "b" * 64), make_cache(fingerprint="b" * 64))
    assert store.changes(FINGERPRINT, 0) == ([], store.changes("b" * 64, 0)[1])  # type: ignore[index]


def test_changes_name_what_was_added_since(store: KVStore) -> None:
    first, second = make_entry("the first of two texts"), make_entry("the second of two texts")
    assert store.changes(FINGERPRINT, 0) == ([], 0)
    store.put(first, make_cache())
    entries, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    assert entries == [first]
    store.put(second, make_cache())
    entries, newer = store.changes(FINGERPRINT, mark) or ([], 0)
    assert entries == [second]
    assert store.changes(FINGERPRINT, newer) == ([], newer)


def test_a_removal_makes_readers_start_over(store: KVStore) -> None:
    first, second = make_entry("the first of two texts"), make_entry("the second of two texts")
    store.put(first, make_cache())
    store.put(second, make_cache())
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    assert store.remove([first.key, first.key, "absent"]) == 1
    assert store.changes(FINGERPRINT, mark) is None
    assert (store.changes(FINGERPRINT, 0) or ([], 0))[0] == [second]
    assert store.open(first.key, FINGERPRINT) is None
    assert store.remove([first.key]) == 0


def test_put_replaces(store: KVStore) -> None:
    entry = make_entry("a text of some length")
    store.put(entry, make_cache(seed=1))
    size = store.nbytes()
    store.put(entry, make_cache(seed=2))
    reader = store.open(entry.key, FINGERPRINT)
    assert reader is not None
    assert torch.equal(reader.layer(0)[0], make_cache(seed=2).keys[0])
    assert store.nbytes() == size > 0
    assert [e.key for e in (store.changes(FINGERPRINT, 0) or ([], 0))[0]] == [entry.key]


def test_prefetch_takes_any_key(store: KVStore) -> None:
    entry = make_entry("a text of some length")
    store.put(entry, make_cache())
    store.prefetch([entry.key, "0" * 64])
    assert store.open(entry.key, FINGERPRINT) is not None


def test_threads_put_and_read_at_once(store: KVStore) -> None:
    entries = [make_entry(f"text number {i} of the store") for i in range(24)]
    errors: list[BaseException] = []

    def work(part: list[Entry]) -> None:
        try:
            for entry in part:
                store.put(entry, make_cache())
                assert store.open(entry.key, FINGERPRINT) is not None
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(entries[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len((store.changes(FINGERPRINT, 0) or ([], 0))[0]) == 24


# -- disk only -----------------------------------------------------------------------------------


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
    disk._path(mine.key).write_bytes(disk._path(other.key).read_bytes())
    with pytest.warns(DamagedChunkWarning, match="another chunk"):
        assert disk.open(mine.key, FINGERPRINT) is None


def test_a_file_of_another_format_version_is_a_miss(disk: DiskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = make_entry("a text of some length")
    monkeypatch.setattr(chunk_file_module, "FORMAT_VERSION", "999")
    disk.put(entry, make_cache())
    monkeypatch.undo()
    with pytest.warns(DamagedChunkWarning, match="its format is '999', expected '1'"):
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

    def full(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunk_file_module, "save_file", full)
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
    with pytest.raises(StoreFormatError, match="schema version 77, this release reads 1"):
        DiskStore(disk.folder)


def test_processes_ingest_into_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_store as t; from samkv_rag.store import DiskStore\n"
        "store = DiskStore(sys.argv[2])\n"
        "for i in range(10): store.put(t.make_entry(f'text {i} of process {sys.argv[3]}, long'), t.make_cache())\n"
    )
    here = os.path.dirname(__file__)
    processes = [subprocess.Popen([sys.executable, "-c", code, here, str(tmp_path), str(n)]) for n in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert len((DiskStore(tmp_path).changes(FINGERPRINT, 0) or ([], 0))[0]) == 20


def test_open_store_takes_memory_folders_and_stores(tmp_path: Path) -> None:
    memory = open_store(":memory:")
    assert isinstance(memory, MemoryStore)
    assert open_store(memory) is memory
    assert isinstance(open_store(tmp_path / "new" / "folder"), DiskStore)
    for wrong in ("", "s3://bucket/prefix"):
        with pytest.raises(ConfigurationError, match="must be ':memory:' or a folder's path"):
            open_store(wrong)


# -- through the engine --------------------------------------------------------------------------


def test_a_damaged_chunk_is_computed_again_and_the_answer_is_the_same(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(3)]
    first = make_engine(store=tmp_path)
    first.add_chunks(chunks)
    expected = first.generate(tiny.rag_prompt(chunks), max_new_tokens=8)
    path = next(tmp_path.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    second = make_engine(store=tmp_path)
    with pytest.warns(DamagedChunkWarning, match=path.name):
        found = second.generate(tiny.rag_prompt(chunks), max_new_tokens=8)
    assert found.token_ids == expected.token_ids
    assert (found.metrics.chunks_hit, found.metrics.chunks_missed) == (2, 1)
    assert second.generate(tiny.rag_prompt(chunks), max_new_tokens=8).metrics.chunks_hit == 3


def test_a_store_of_another_model_is_a_miss_and_loses_nothing(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(3)]
    llama, qwen = make_engine("llama", store=tmp_path), make_engine("qwen2", store=tmp_path)
    llama.add_chunks(chunks)
    result = qwen.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
    assert result.metrics.chunks_total == 0
    assert qwen.add_chunks(chunks).num_added == 3
    assert llama.add_chunks(chunks).num_reused == 3


def test_a_full_disk_stops_ingestion_with_its_reason_and_queries_go_on(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(store=tmp_path)
    chunks = [tiny.text(seed) for seed in range(3)]
    engine.add_chunks(chunks[:1])

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chunk_file_module, "save_file", full)
    with pytest.raises(StoreFullError, match="Stored chunks are intact"):
        engine.add_chunks(chunks)
    engine.hint(chunks)
    with pytest.warns(UserWarning, match="is full"):
        result = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
    assert (result.metrics.chunks_hit, result.metrics.chunks_missed) == (1, 2)


def test_changed_summaries_are_computed_again_only_where_they_are_read(
    make_engine: Callable[..., SamKVEngine], tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(2)]
    make_engine(store=tmp_path, block_tokens=8).add_chunks(chunks)
    assert make_engine(store=tmp_path, block_tokens=16).add_chunks(chunks).num_reused == 2
    assert make_engine(store=tmp_path, block_tokens=16, method="samkv").add_chunks(chunks).num_added == 2
    assert make_engine(store=tmp_path, block_tokens=16, resume_layer=2).add_chunks(chunks).num_added == 2


def test_entries_compare_by_value() -> None:
    entry = make_entry("a text of some length")
    assert entry == make_entry("a text of some length") != replace(entry, num_tokens=8)
