"""The catalog: texts and sources survive processes, kills and damage; removed documents release their chunks."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import DamagedCatalogWarning, StoreError, StoreUnreachableError, StoreUnreachableWarning
from samkv_rag.store.catalog import Catalog
from samkv_rag.store.codec import ChunkIdentity
from samkv_rag.store.disk import DiskStore
from samkv_rag.store.memory import MemoryStore
from samkv_rag.store.objects import ObjectStore
from support import tiny
from support.crafting import rewritten
from support.engines import MakeEngine

CHUNKS = [tiny.text(seed) for seed in range(6)]


def identity(number: int) -> ChunkIdentity:
    return ChunkIdentity("f", f"{number:064x}", 100, f"text {number:011}", f"ends\0 {number:010}", 20)


def execute(catalog: Path, statement: str) -> None:
    connection = sqlite3.connect(catalog, isolation_level=None)
    connection.execute(statement)
    connection.close()


# Sources


def has(engine: SamKVEngine) -> list[bool]:
    return [engine.has_chunk(text) for text in CHUNKS[:3]]


def test_a_chunk_goes_with_its_last_source(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS[:3], sources=["a", "b", None])
    engine.add_chunks(CHUNKS[:1], sources=["c"])
    assert sorted(engine.sources()) == ["a", "b", "c"]
    assert engine.remove_sources(["a", "b", "unknown"]) == 1
    assert has(engine) == [True, False, True]
    engine.add_chunks([CHUNKS[1]], sources=["c"])
    assert has(engine) == [False, True, True], "a source with a new text releases the old one"
    assert engine.prune([], unreferenced_only=True) == 1
    assert has(engine) == [False, True, False]
    assert engine.remove_sources("c") == 1
    assert engine.sources() == []
    engine.add_chunks(CHUNKS[:1], sources=["d"])
    engine.add_chunks([CHUNKS[1], CHUNKS[0]], sources=["d", None])
    assert has(engine) == [True, True, False], "given again, though without a source"


def test_a_source_of_another_process_keeps_its_chunk(make_engine: MakeEngine, tmp_path: Path) -> None:
    """Between a release and the deletion that follows, another process may give the chunk a new source."""
    going, coming = make_engine(store=tmp_path / "kv"), make_engine(store=tmp_path / "kv")
    going.add_chunks(CHUNKS[:1], sources=["old"])
    release = going._library._catalog.release

    def released(*args: Any) -> set[str]:
        unreferenced = release(*args)
        coming.add_chunks(CHUNKS[:1], sources=["new"])
        return unreferenced

    going._library._catalog.release = released  # type: ignore[assignment, method-assign]
    assert going.remove_sources(["old"]) == 0
    assert coming.sources() == ["new"]
    assert coming.has_chunk(CHUNKS[0])


def test_a_chunk_that_is_deleted_before_it_has_its_source_is_stored_again(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    going, coming = make_engine(store=tmp_path / "kv"), make_engine(store=tmp_path / "kv")
    going.add_chunks(CHUNKS[:1], sources=["old"])
    refer = coming._library._catalog.refer

    def referred(*args: Any) -> set[str]:
        assert going.remove_sources(["old"]) == 1
        return refer(*args)

    coming._library._catalog.refer = referred  # type: ignore[assignment, method-assign]
    coming.add_chunks(CHUNKS[:1], sources=["new"])
    assert coming.has_chunk(CHUNKS[0])
    assert going.has_chunk(CHUNKS[0])
    assert coming.sources() == ["new"]


def test_removing_a_document_deletes_nothing_from_a_shared_store(make_engine: MakeEngine) -> None:
    class Shared(MemoryStore):
        shared = True

    store = Shared()
    engine = make_engine(store=store)
    engine.add_chunks(CHUNKS[:1], sources=["a"])
    engine.remove_sources("a")
    assert engine.sources() == []
    assert engine.has_chunk(CHUNKS[0]), "another machine's document may refer to it"
    assert engine.add_chunks(CHUNKS[:1]).num_reused == 1
    assert engine.remove_chunks(CHUNKS[:1]) == 1


# Processes


@pytest.mark.parametrize("column", ["num_chars", "prefix", "suffix"])
@pytest.mark.parametrize("way", ["add_chunks", "announce"])
def test_a_wrong_catalog_entry_is_corrected_when_its_text_is_given(
    make_engine: MakeEngine, tmp_path: Path, column: str, way: str
) -> None:
    engine = make_engine(store=tmp_path / "kv", chunks=CHUNKS[:1])
    (right,) = Catalog(engine.store).chunks()
    engine.close()
    execute(tmp_path / "kv" / "catalog.sqlite", f"UPDATE chunks SET {column} = {column} || 1")
    engine, other = make_engine(store=tmp_path / "kv"), make_engine(store=tmp_path / "kv")
    prompt = tiny.rag_prompt(CHUNKS[:1])
    assert engine.generate(prompt, max_new_tokens=1).metrics.chunks_hit == 0
    assert other.generate(prompt, max_new_tokens=1).metrics.chunks_hit == 0
    getattr(engine, way)(CHUNKS[:1])
    assert engine.generate(prompt, max_new_tokens=1).metrics.chunks_hit == 1
    if way == "add_chunks":
        assert other.generate(prompt, max_new_tokens=1).metrics.chunks_hit == 1
        assert Catalog(other.store).chunks() == [right]


def test_two_stores_on_one_folder_beside_another_process_lose_nothing(tmp_path: Path) -> None:
    """Closing any descriptor of a SQLite file drops the process's locks; another process could then delete its log."""
    folder = tmp_path / "kv"
    first, second = Catalog(DiskStore(folder)), Catalog(DiskStore(folder))
    first.add([identity(0)])
    code = """
        import sys
        from samkv_rag.store.catalog import Catalog
        from samkv_rag.store.disk import DiskStore
        catalog = Catalog(DiskStore(sys.argv[1]))
        catalog.add([])
        print(len(catalog.chunks()), len(catalog.sources("f")))
        catalog.close()
    """

    def look() -> str:
        return subprocess.check_output([sys.executable, "-c", textwrap.dedent(code), str(folder)], text=True)

    look()
    third = Catalog(DiskStore(folder))  # this one used to drop the lock
    look()
    first.add(identity(number) for number in range(1, 41))
    first.refer("f", {f"source {number}": f"key {number}" for number in range(40)})
    assert look().split() == ["41", "40"]
    assert len(second.chunks()) == len(third.chunks()) == 41


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_gets_a_connection_of_its_own(tmp_path: Path) -> None:
    catalog = Catalog(DiskStore(tmp_path / "kv"))
    catalog.add([identity(0)])
    child = os.fork()
    if child == 0:
        catalog.add([identity(1)])
        os._exit(0 if len(catalog.chunks()) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    catalog.add([identity(2)])
    assert len(catalog.chunks()) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_what_a_fork_writes_outlives_its_parents_connection(tmp_path: Path) -> None:
    """SQLite's locks are the parent's: a child with an inherited connection would write into a deleted log."""
    catalog = Catalog(DiskStore(tmp_path / "kv"))
    catalog.add([identity(0)])
    go, went = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        catalog.add([identity(1)])
        os.read(go, 1)
        for number in range(3, 9):
            catalog.add([identity(number)])
        os._exit(0 if len(catalog.chunks()) == 9 else 1)
    add = f"""
        from pathlib import Path
        from samkv_rag.store.catalog import Catalog
        from samkv_rag.store.codec import ChunkIdentity
        from samkv_rag.store.disk import DiskStore
        catalog = Catalog(DiskStore(Path({str(tmp_path / "kv")!r})))
        catalog.add([ChunkIdentity("f", "2" * 64, 100, "text", "ends", 20)])
        catalog.close()
    """
    time.sleep(0.5)  # the child has written its first entry
    catalog.close()
    subprocess.run([sys.executable, "-c", textwrap.dedent(add)], check=True)
    os.write(went, b"!")
    assert os.waitpid(child, 0)[1] == 0
    assert len(Catalog(DiskStore(tmp_path / "kv")).chunks()) == 9


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("make", [MemoryStore, DiskStore])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_is_not_stopped_by_a_lock_of_its_parent(make: Any, tmp_path: Path) -> None:
    store = make(tmp_path) if make is DiskStore else make()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(store._lock.__enter__).result()
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends it if it hangs
            store.put("0" * 64, b"bytes")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        pool.submit(store._lock.__exit__).result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_is_told_that_it_cannot_use_an_object_store(s3_options: dict[str, Any]) -> None:
    store = ObjectStore("s3://samkv/forked", **s3_options)
    store.put("0" * 64, b"bytes")
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends it if it hangs
        words = "opened before this process was forked"
        with pytest.warns(StoreUnreachableWarning, match=words), pytest.raises(StoreUnreachableError, match=words):
            store.contains(["0" * 64])
        with pytest.raises(StoreUnreachableError, match=words):
            store.get("0" * 64)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert store.contains(["0" * 64])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_does_not_wait_for_a_thread_of_its_parent(tmp_path: Path) -> None:
    catalog = Catalog(DiskStore(tmp_path / "kv"))
    catalog.add([identity(0)])
    with ThreadPoolExecutor() as pool:
        pool.submit(catalog._lock.acquire).result()
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends it if it hangs
            os._exit(0 if len(catalog.chunks()) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        pool.submit(catalog._lock.release).result()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_a_copy_of_a_catalog_in_memory() -> None:
    catalog = Catalog(MemoryStore())
    catalog.add([identity(0)])
    catalog.news("f")
    child = os.fork()
    if child == 0:
        catalog.add([identity(1)])
        os._exit(0 if (len(catalog.news("f")), len(catalog.chunks())) == (1, 2) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(catalog.chunks()) == 1


# Damage and places


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"nothing of SQLite's " * 500),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "schema": lambda path: execute(path, "PRAGMA user_version = 99"),
    "lost": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_catalog_is_made_again_from_the_chunks(make_engine: MakeEngine, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "kv"
    make_engine(store=folder, chunks=CHUNKS).close()
    for log in folder.glob("catalog.sqlite-*"):
        log.unlink()
    DAMAGES[damage](folder / "catalog.sqlite")
    said = pytest.warns(DamagedCatalogWarning, match="is made again from the stored chunks")
    with nullcontext() if damage == "lost" else said:
        again = make_engine(store=folder)
    assert again.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).metrics.chunks_hit == len(CHUNKS)
    again.add_chunks([tiny.text(50)], sources=["new"])
    assert again.sources() == ["new"]


def test_a_new_catalog_of_another_process_is_not_put_aside(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv")
    late, first = Catalog(store), Catalog(store)
    late.add([identity(0)])
    assert first._path is not None
    with pytest.warns(DamagedCatalogWarning):
        first._put_aside(first._path, ValueError("damaged"))
    first.add([identity(1)])
    late._put_aside(first._path, ValueError("damaged"))
    assert [chunk.key for chunk in late.chunks()] == [chunk.key for chunk in first.chunks()] == [identity(1).key]
    assert len(list(store.folder.glob("catalog.sqlite.damaged-*"))) == 1


def test_a_catalog_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    store = DiskStore(tmp_path / "kv")
    open_before = Catalog(store)
    open_before.add([identity(0)])
    for file in store.folder.glob("catalog.sqlite*"):
        file.unlink()
    other = Catalog(store)
    other.add([identity(1)])
    open_before.add([identity(2)])
    assert [chunk.key for chunk in other.chunks()] == [identity(1).key, identity(2).key]
    assert open_before.chunks() == other.chunks()


def test_many_processes_may_open_a_new_folder_at_once(tmp_path: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        from samkv_rag.store.catalog import Catalog
        from samkv_rag.store.disk import DiskStore
        sys.stdin.read(1)
        for number in range(40):
            Catalog(DiskStore(Path({str(tmp_path)!r}) / str(number)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    opening = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    with ThreadPoolExecutor(len(opening)) as pool:
        errors = list(pool.map(lambda process: process.communicate(b"!")[1], opening))
    assert errors == [b""] * 4


def test_a_damaged_catalog_that_cannot_be_put_aside_is_named(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(store=tmp_path / "kv", chunks=CHUNKS).close()
    DAMAGES["garbage"](tmp_path / "kv" / "catalog.sqlite")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(
        StoreError, match=r"catalog.sqlite is damaged .* cannot be put aside: Permission denied; delete"
    ):
        make_engine(store=tmp_path / "kv")


def test_an_interrupted_rebuild_is_made_up_for(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine(store=tmp_path / "kv", chunks=CHUNKS).close()
    for file in (tmp_path / "kv").glob("catalog.sqlite*"):
        file.unlink()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Catalog(DiskStore(tmp_path / "kv"))
    assert len(Catalog(DiskStore(tmp_path / "kv")).chunks()) == len(CHUNKS)


@pytest.mark.parametrize("change", ["num_chars = 'many'", "suffix = x'00'", "digest = x'00'", "model_name = x'ff'"])
def test_a_row_of_wrong_types_is_ignored(make_engine: MakeEngine, tmp_path: Path, change: str) -> None:
    """SQLite returns what a damaged page has: any type in any column."""
    make_engine(store=tmp_path / "kv", chunks=CHUNKS)
    execute(tmp_path / "kv" / "catalog.sqlite", f"UPDATE chunks SET {change} WHERE id = 1")
    again = make_engine(store=tmp_path / "kv")
    assert len(again._library._catalog.chunks()) == len(CHUNKS) - 1
    again.announce(CHUNKS)
    assert again.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).metrics.chunks_hit == len(CHUNKS)


@pytest.mark.parametrize("changes", [{"digest": [1]}, {"namespace": "\ud800"}, {"num_tokens": -5}])
def test_a_rebuilt_catalog_omits_wrong_files(make_engine: MakeEngine, tmp_path: Path, changes: dict[str, Any]) -> None:
    make_engine(store=tmp_path / "kv", chunks=CHUNKS).close()
    path = sorted((tmp_path / "kv").rglob("*.safetensors"))[2]
    path.write_bytes(rewritten(path.read_bytes(), **changes))
    for file in (tmp_path / "kv").glob("catalog.sqlite*"):
        file.unlink()
    again = make_engine(store=tmp_path / "kv")
    metrics = again.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).metrics
    assert (metrics.chunks_hit, metrics.chunks_missed) == (len(CHUNKS) - 1, 0), "one is not recognised any more"


def test_files_are_their_owners_alone(make_engine: MakeEngine, tmp_path: Path) -> None:
    make_engine(store=tmp_path / "kv", chunks=CHUNKS)
    for path in (tmp_path / "kv").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_reader_that_cannot_write_sees_a_writers_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = DiskStore("kv")
    writer = Catalog(store)
    writer.add([identity(0)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        reader = Catalog(store)
        assert len(reader.chunks()) == 1
        writer.add([identity(1)])
        assert len(reader.chunks()) == 2
        reader.close()
        writer.close()
        DAMAGES["garbage"](tmp_path / "kv" / "catalog.sqlite")
        with pytest.raises(StoreError, match=r"catalog\.sqlite cannot be"):
            Catalog(store)
    assert not list((tmp_path / "kv").glob("*.damaged-*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_answers(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    make_engine(store=folder, chunks=CHUNKS).close()
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    reader = make_engine(store=folder)
    assert reader.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).metrics.chunks_hit == len(CHUNKS)
    with pytest.raises(StoreError):
        reader.add_chunks([tiny.text(50)])


def test_a_catalog_of_a_hundred_thousand_texts_opens_quickly(tmp_path: Path) -> None:
    from samkv_rag.ingestion.recognition import ChunkIndex

    catalog = Catalog(DiskStore(tmp_path / "kv"))
    catalog.add(identity(number) for number in range(100_000))
    catalog.close()
    started = time.process_time()
    index = ChunkIndex()
    index.add(news := Catalog(DiskStore(tmp_path / "kv")).news("f"))
    index.find("A prompt of some length, which holds none of them.")
    assert len(news) == 100_000
    assert time.process_time() - started < 5  # the benchmark has the figure; this finds quadratic time
