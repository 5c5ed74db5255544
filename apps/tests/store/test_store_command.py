"""`samkv store`, run in the test's process."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from samkv_apps.store.admin import verify
from samkv_apps.store.command import format_bytes, parse_bytes, parse_seconds
from samkv_rag.exceptions import DamagedChunkError
from samkv_rag.sources import source_names
from samkv_rag.store.catalog import Catalog
from samkv_rag.store.codec import StoredChunk
from samkv_rag.store.disk import DiskStore
from support import tiny
from support.commands import Run, only_line, run
from support.crafting import rewritten
from support.engines import CHUNKS, MakeEngine

__all__ = ["run"]


@pytest.fixture
def folder(make_engine: MakeEngine, tmp_path: Path) -> Path:
    engine = make_engine(store=tmp_path / "kv")
    engine.add_chunks(CHUNKS, sources=source_names("docs", ["a", "b", "c", "d"]))
    engine.close()
    return tmp_path / "kv"


def spoil(folder: Path) -> None:
    path = sorted(folder.rglob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def test_stat_counts(run: Run, folder: Path) -> None:
    status, out, _ = run("store", "stat", "--store", folder)
    assert status == 0
    assert re.match(r"4 chunks, .*, [\d,]+ for a character of text\n", out)
    assert "(no namespace)  llama" in out
    figures = json.loads(run("store", "stat", "--store", folder, "--json")[1])
    assert (figures["num_chunks"], figures["num_chars"], len(figures["groups"])) == (4, sum(map(len, CHUNKS)), 1)


def test_ls_lists(run: Run, folder: Path) -> None:
    lines = run("store", "ls", "--store", folder)[1].splitlines()
    assert len(lines) == 4
    assert all("tokens" in line for line in lines)
    listed = json.loads(run("store", "ls", "--store", folder, "--json")[1])
    assert {entry["num_chars"] for entry in listed} == set(map(len, CHUNKS))
    assert run("store", "ls", "--store", folder, "--namespace", "other")[1] == ""


def test_verify_finds_and_removes_damage(run: Run, folder: Path) -> None:
    assert run("store", "verify", "--store", folder)[:2] == (0, "sound: 4 chunks, " + format_bytes(size(folder)) + "\n")
    spoil(folder)
    status, out, _ = run("store", "verify", "--store", folder)
    assert status == 1
    assert "damaged: " in out and "the checksum of" in out
    assert run("store", "verify", "--store", folder, "--remove-damaged")[0] == 1
    assert run("store", "verify", "--store", folder)[0] == 0
    assert len(list(folder.rglob("*.safetensors"))) == 3


def test_a_chunk_replaced_while_it_is_verified_is_not_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_one, seen = StoredChunk.verify, list[StoredChunk]()

    def replaced_at_first(chunk: StoredChunk) -> None:
        seen.append(chunk)
        if len(seen) == 1:
            raise DamagedChunkError("it was replaced while it was read")
        verify_one(chunk)

    monkeypatch.setattr(StoredChunk, "verify", replaced_at_first)
    with DiskStore(folder) as store:
        assert not verify(store, remove_damaged=True).damaged
    assert len(list(folder.rglob("*.safetensors"))) == 4


def test_verify_removes_leftovers_of_killed_writers_after_a_day(folder: Path) -> None:
    chunks = sorted(folder.rglob("*.safetensors"))
    for name, age_s in ((".writing-old", 90_000), (".writing-new", 10)):
        path = chunks[0].with_name(name)
        path.write_bytes(b"half of a chunk")
        os.utime(path, (time.time() - age_s,) * 2)
    with DiskStore(folder) as store:
        assert verify(store).num_leftovers == 1
    assert [path.name for path in folder.rglob(".writing-*")] == [".writing-new"]
    assert sorted(folder.rglob("*.safetensors")) == chunks


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_prune_by_size_age_and_sources(run: Run, folder: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("a\nb\nc\n", "utf-8-sig")  # as Windows writes it
    by_source = ("store", "prune", "--store", folder, "--keep-sources", keep, "--id-scope", "docs")
    assert run(*by_source, "--dry-run")[1].startswith("would delete 1 chunk, ")
    assert run(*by_source)[1].startswith("deleted 1 chunk, ")
    assert run(*by_source)[1].startswith("deleted 0 chunks")
    assert run("store", "prune", "--store", folder, "--older-than", "1d")[1].startswith("deleted 0 chunks")
    assert run("store", "prune", "--store", folder, "--max-bytes", size(folder) - 1)[1].startswith("deleted 1 chunk, ")
    assert run("store", "prune", "--store", folder, "--older-than", "0s")[1].startswith("deleted 2 chunks, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing says what to delete"),
        *((("--max-bytes", n), "is not a number of bytes such as 10GB") for n in ("many", "", "1e9", "9" * 40)),
        (("--older-than", "30x"), "'30x' is not a length of time such as 30d"),
        (("--keep-sources", __file__), "--keep-sources needs --id-scope"),
    ],
)
def test_prune_refuses_wrong_options(run: Run, folder: Path, options: tuple[str, ...], message: str) -> None:
    status, _, err = run("store", "prune", "--store", folder, *options)
    assert status == 1
    assert message in only_line(err)


def test_export_and_import_omit_damaged_chunks(run: Run, folder: Path, tmp_path: Path, make_engine: MakeEngine) -> None:
    spoil(folder)
    archive = tmp_path / "kv.tar"
    assert run("store", "export", archive, "--store", folder)[1].startswith("exported 3 chunks, ")
    assert "exists already" in only_line(run("store", "export", archive, "--store", folder)[2])
    crafted = sorted(folder.rglob("*.safetensors"))[1]
    crafted.write_bytes(rewritten(crafted.read_bytes(), num_chars=None))
    with tarfile.open(archive, "a") as tar:
        tar.add(__file__, "../../outside.safetensors")
        tar.add(crafted, crafted.name)
    status, out, _ = run("store", "import", archive, "--store", tmp_path / "other")
    assert status == 1
    assert out.startswith("imported 3 chunks, ")
    assert "refused: ../../outside.safetensors: its header would have" in out
    assert f"refused: {crafted.name}: its metadata is not what a writer writes" in out
    engine = make_engine(store=tmp_path / "other")
    assert engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).metrics.chunks_hit == 3
    assert f"damaged: {crafted.stem}" in run("store", "verify", "--store", folder)[1]


@pytest.mark.parametrize("damage", ["header", "cut", "gz"])
def test_a_damaged_archive_is_told_and_its_sound_chunks_are_known(
    run: Run, folder: Path, tmp_path: Path, damage: str
) -> None:
    archive, other = tmp_path / "kv.tar", tmp_path / "other"
    run("store", "export", archive, "--store", folder)
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        second = tar.getmembers()[1].offset
    if damage == "header":
        archive.write_bytes(whole[: second + 150] + b"\xff" + whole[second + 151 :])
    elif damage == "cut":
        archive.write_bytes(whole[: second + 100])
    else:
        archive.write_bytes(gzip.compress(whole)[:-400])
    status, _, err = run("store", "import", archive, "--store", other)
    assert status
    assert "cannot be read as an exported file" in only_line(err)
    with DiskStore(other) as store, closing(Catalog(store)) as catalog:
        assert len(catalog.chunks()) == len(list(store.keys()))


def test_a_failed_export_leaves_no_file(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    (tmp_path / "out").mkdir()
    status, _, err = run("store", "export", tmp_path / "out" / "kv.tar", "--store", folder)
    assert status == 1
    assert "kv.tar cannot be written: No space left on device" in only_line(err)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", ["stat", "ls", "verify", "prune"])
def test_a_folder_without_a_store_is_refused(run: Run, tmp_path: Path, command: str) -> None:
    options = ("--max-bytes", "1") if command == "prune" else ()
    status, _, err = run("store", command, "--store", tmp_path, *options)
    assert status == 1
    assert "is not a store; give the folder that an engine was opened with" in only_line(err)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_option_writes_nothing_anywhere(run: Run, folder: Path, tmp_path: Path) -> None:
    run("store", "export", tmp_path / "kv.tar", "--store", folder)
    status, _, err = run("store", "import", tmp_path / "kv.tar", "--store", "")
    assert status == 1
    assert "folder is ''; it must be the path of a folder" in only_line(err)
    assert list(Path.cwd().iterdir()) == []


def test_amounts_in_words() -> None:
    assert [parse_bytes(text) for text in ("100", "1.5 kb", "10GB", "1GiB")] == [100, 1500, 10**10, 2**30]
    assert [parse_seconds(text) for text in ("45m", "12h", "30d")] == [2700, 43200, 2592000]
    assert [format_bytes(n) for n in (999, 1500, 40_100_000_000)] == ["999 bytes", "1.5 KB", "40.1 GB"]


def test_help_and_version(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert "store" in out
    assert run("--version")[1].startswith("samkv ")
    assert run("nonsense")[0] == 2
    assert run()[0] == run("store")[0] == 2
