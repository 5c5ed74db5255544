"""`samkv store ...`: what is stored is counted, listed, checked, pruned and carried elsewhere."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import cli
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store import DiskStore, Entry, Origin
from samkv_rag.store.units import format_bytes, parse_bytes, parse_seconds

Run = Callable[..., tuple[int, str, str]]
ORIGINS = [Origin("tenant a", "f1" * 32, "model-1"), Origin("", "f2" * 32, "model-2")]
ENTRIES = [replace(make_entry(f"text number {i} of the store"), origin=ORIGINS[i % 2]) for i in range(4)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function: arguments of ``samkv store`` to exit status, standard output and standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["samkv", "store", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def run_json(run: Run) -> Callable[..., Any]:
    """Like ``run`` with ``--json``: the status and what was printed."""

    def call(*arguments: object) -> tuple[int, Any]:
        status, out, _ = run(*arguments, "--json")
        return status, json.loads(out)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of four chunks, two for each origin."""
    with DiskStore(tmp_path / "store") as store:
        for entry in ENTRIES:
            store.put(entry, make_cache())
    return tmp_path / "store"


def keys(folder: Path) -> set[str]:
    with DiskStore(folder) as store:
        entries = (store.changes(FINGERPRINT, 0) or ([], 0))[0]
    assert {path.stem for path in folder.rglob("*.safetensors")} == {entry.key for entry in entries}
    return {entry.key for entry in entries}


def keys_of(*entries: Entry) -> set[str]:
    return {entry.key for entry in entries}


def file_of(folder: Path, entry: Entry) -> Path:
    return folder / "chunks" / entry.key[:2] / f"{entry.key}.safetensors"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def used_days_ago(folder: Path, days: float, *entries: Entry) -> None:
    with sqlite3.connect(folder / "index.sqlite") as index:
        rows = [(time.time() - days * 86400, entry.key) for entry in entries]
        index.executemany("UPDATE chunks SET last_use_s = ? WHERE key = ?", rows)


# -- looking -------------------------------------------------------------------------------------------


def test_stat_counts_by_namespace_and_model(run: Run, run_json: Callable[..., Any], folder: Path) -> None:
    status, found = run_json("stat", "--store", folder)
    assert status == 0
    assert (found["num_chunks"], found["num_tokens"]) == (4, 28)
    assert found["num_bytes"] == sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    assert {(g["namespace"], g["model_name"], g["num_chunks"]) for g in found["groups"]} == {
        ("tenant a", "model-1", 2),
        ("", "model-2", 2),
    }
    _, out, _ = run("stat", "--store", folder)
    assert out.splitlines()[0].startswith("4 chunks, 28 tokens, ")
    assert "tenant a  model-1 f1f1f1f1f1f1  2 chunks" in out
    assert "(no namespace)  model-2 f2f2f2f2f2f2" in out


def test_ls_lists_what_it_is_asked_for(run: Run, run_json: Callable[..., Any], folder: Path) -> None:
    _, found = run_json("ls", "--store", folder)
    assert [chunk["key"] for chunk in found] == [entry.key for entry in ENTRIES]
    assert (found[0]["begins"], found[0]["num_tokens"], found[0]["fingerprint"]) == ("text number 0 of", 7, FINGERPRINT)
    for option in (["--namespace", "tenant a"], ["--model", "f1f1"]):
        assert [chunk["key"] for chunk in run_json("ls", "--store", folder, *option)[1]] == [
            ENTRIES[0].key,
            ENTRIES[2].key,
        ]
    assert len(run_json("ls", "--store", folder, "--namespace", "")[1]) == 2
    _, out, _ = run("ls", "--store", folder)
    assert len(out.splitlines()) == 4
    assert out.startswith(ENTRIES[0].key[:16])


def test_ls_prints_no_control_characters(run: Run, folder: Path) -> None:
    with DiskStore(folder) as store:
        store.put(make_entry("\x1b[2Jclears the screen\n of who lists it"), make_cache())
    _, out, _ = run("ls", "--store", folder)
    assert "\x1b" not in out and len(out.splitlines()) == 5


# -- verify --------------------------------------------------------------------------------------------


def test_a_sound_store_is_verified(run: Run, folder: Path) -> None:
    status, out, error = run("verify", "--store", folder)
    assert (status, error) == (0, "")
    assert out.startswith("4 files, ") and out.rstrip().endswith(": 0 damaged")


def test_every_damaged_file_is_listed_by_name(run: Run, run_json: Callable[..., Any], folder: Path) -> None:
    flipped, cut, swapped, whole = (file_of(folder, entry) for entry in ENTRIES)
    damage(flipped)
    cut.write_bytes(cut.read_bytes()[:-7])
    swapped.write_bytes(whole.read_bytes())
    status, found = run_json("verify", "--store", folder)
    assert status == 1
    assert {file["name"] for file in found["damaged"]} == {flipped.name, cut.name, swapped.name}
    assert found["num_files"] == 4
    status, out, _ = run("verify", "--store", folder)
    assert status == 1
    assert f"damaged {flipped.name}: checksum differs in" in out
    assert f"damaged {swapped.name}: it holds another chunk" in out
    assert whole.name not in out


def test_damaged_files_are_removed_on_request_only(run: Run, folder: Path) -> None:
    damage(file_of(folder, ENTRIES[0]))
    assert run("verify", "--store", folder)[0] == 1
    assert keys(folder) == keys_of(*ENTRIES)
    assert run("verify", "--store", folder, "--remove-damaged")[0] == 1
    assert keys(folder) == keys_of(*ENTRIES[1:])
    assert run("verify", "--store", folder)[0] == 0


def test_a_newer_releases_file_is_told_apart_from_a_damaged_one(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from samkv_rag.store.format import encoding

    monkeypatch.setattr(encoding, "FORMAT_VERSION", "999")
    with DiskStore(folder) as store:
        store.put(make_entry("a text of the next release"), make_cache())
    monkeypatch.undo()
    status, out, _ = run("verify", "--store", folder)
    assert status == 0
    assert f"unknown {make_entry('a text of the next release').key}.safetensors: of a newer release" in out


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(run_json: Callable[..., Any], folder: Path) -> None:
    with DiskStore(folder) as store:
        (folder / "chunks" / "00").mkdir(exist_ok=True)
        dead = folder / "chunks" / "00" / ".writing-dead"
        dead.write_bytes(b"half a chunk")
        with store.files.written(ENTRIES[0].key, [b"half a chunk"]) as living:
            _, found = run_json("verify", "--store", folder)
            assert found["leftovers_removed"] == [dead.name]
            assert living.exists() and not dead.exists()
        assert not living.exists()


def test_verify_brings_the_index_in_line_with_the_files(run_json: Callable[..., Any], folder: Path) -> None:
    unindexed, gone, wrong = ENTRIES[:3]
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("DELETE FROM chunks WHERE key = ?", (unindexed.key,))
        index.execute("UPDATE chunks SET num_tokens = 99 WHERE key = ?", (wrong.key,))
    file_of(folder, gone).unlink()
    status, found = run_json("verify", "--store", folder)
    assert (status, found["lines_corrected"], found["lines_removed"]) == (0, 2, 1)
    assert keys(folder) == keys_of(*ENTRIES) - keys_of(gone)
    with DiskStore(folder) as store:
        entries = (store.changes(FINGERPRINT, 0) or ([], 0))[0]
        assert next(entry for entry in entries if entry.key == wrong.key) == wrong


def test_an_index_that_contradicts_itself_is_made_again(run: Run, folder: Path) -> None:
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("PRAGMA writable_schema = ON")
        index.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'fingerprint, mark', 'mark') WHERE name LIKE 'chunks_of%'"
        )
    status, out, _ = run("verify", "--store", folder)
    assert status == 1
    assert "damaged index.sqlite: " in out
    assert run("verify", "--store", folder)[0] == 0


def test_rebuild_index_finds_every_whole_file(run: Run, run_json: Callable[..., Any], folder: Path) -> None:
    damage(file_of(folder, ENTRIES[0]))
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute("DELETE FROM chunks")
    assert run_json("rebuild-index", "--store", folder) == (0, {"num_chunks": 4})
    assert run("rebuild-index", "--store", folder) == (0, "index made again: 4 chunks\n", "")


# -- prune ---------------------------------------------------------------------------------------------


def test_prune_by_age_counts_from_the_last_use(run: Run, run_json: Callable[..., Any], folder: Path) -> None:
    used_days_ago(folder, 31, *ENTRIES[:2])
    status, out, _ = run("prune", "--store", folder, "--older-than", "30d", "--dry-run")
    assert status == 0 and out.startswith("would delete 2 chunks, 14 tokens, ")
    assert keys(folder) == keys_of(*ENTRIES)
    _, found = run_json("prune", "--store", folder, "--older-than", "30d")
    assert (found["num_chunks"], found["dry_run"]) == (2, False)
    assert keys(folder) == keys_of(*ENTRIES[2:])


def test_prune_by_size_lets_the_least_valuable_go(run: Run, folder: Path) -> None:
    used_days_ago(folder, 2, ENTRIES[1])
    used_days_ago(folder, 1, ENTRIES[3])
    size = 2 * file_of(folder, ENTRIES[0]).stat().st_size + 20
    assert run("prune", "--store", folder, "--max-bytes", size)[0] == 0
    assert keys(folder) == keys_of(ENTRIES[0], ENTRIES[2])
    assert run("prune", "--store", folder, "--max-bytes", "1GB")[1].startswith("deleted 0 chunks")


@pytest.mark.parametrize("option", [("--namespace", "tenant a"), ("--model", "f1f1f1")])
def test_prune_by_namespace_or_model(run: Run, folder: Path, option: tuple[str, str]) -> None:
    assert run("prune", "--store", folder, *option)[0] == 0
    assert keys(folder) == keys_of(ENTRIES[1], ENTRIES[3])


def test_prune_options_name_more_within_a_namespace(run: Run, folder: Path) -> None:
    used_days_ago(folder, 31, *ENTRIES[:2])
    run("prune", "--store", folder, "--older-than", "30d", "--namespace", "tenant a")
    assert keys(folder) == keys_of(*ENTRIES[1:])


def test_prune_keeps_what_other_sources_need(run: Run, folder: Path, tmp_path: Path) -> None:
    twice, once, elsewhere, free = (entry.key for entry in ENTRIES)
    sources = {"llama_index/a": twice, "llama_index/b": twice, "llama_index/c": once, "other/c": elsewhere}
    with DiskStore(folder) as store:
        store.refer(FINGERPRINT, sources)
    (tmp_path / "ids").write_text("a\n\n  x \n")
    arguments = ("prune", "--store", folder, "--keep-sources", tmp_path / "ids")
    assert run(*arguments, "--dry-run")[1].startswith("would delete 1 chunk, ")
    with DiskStore(folder) as store:
        assert store.references(FINGERPRINT) == sources
    assert run(*arguments)[1].startswith("deleted 1 chunk, ")
    assert keys(folder) == {twice, elsewhere, free}
    with DiskStore(folder) as store:
        assert store.references(FINGERPRINT) == {"llama_index/a": twice, "other/c": elsewhere}
    run(*arguments, "--id-scope", "other")
    assert keys(folder) == {twice, free}


# -- export and import ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chunks.tar", "chunks"])
def test_what_is_exported_is_imported_byte_for_byte(
    run: Run, run_json: Callable[..., Any], folder: Path, tmp_path: Path, name: str
) -> None:
    target, other = tmp_path / name, tmp_path / "other"
    assert run("export", target, "--store", folder)[1].startswith("exported 4 chunks, 28 tokens, ")
    assert target.stat().st_mode & 0o077 == 0
    status, found = run_json("import", target, "--store", other)
    assert (status, found["num_added"], found["refused"]) == (0, 4, [])
    assert keys(other) == keys_of(*ENTRIES)
    for entry in ENTRIES:
        assert file_of(other, entry).read_bytes() == file_of(folder, entry).read_bytes()
    with DiskStore(other) as store:
        assert sorted((store.changes(FINGERPRINT, 0) or ([], 0))[0], key=lambda e: e.prefix) == ENTRIES
    assert run_json("import", target, "--store", other)[1]["num_present"] == 4


def test_export_takes_a_namespace_and_leaves_damaged_chunks_out(run: Run, folder: Path, tmp_path: Path) -> None:
    damage(file_of(folder, ENTRIES[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, out, error = run("export", tmp_path / "part.tar", "--store", folder, "--namespace", "tenant a")
    assert out.startswith("exported 1 chunk, ")
    assert error.startswith(f"samkv: warning: {ENTRIES[0].key}.safetensors: ")
    status, _, error = run("export", tmp_path / "part.tar", "--store", folder)
    assert status == 1 and "is there already" in error


def test_import_verifies_every_chunk_and_uses_no_path(run: Run, folder: Path, tmp_path: Path) -> None:
    contents = [file_of(folder, entry).read_bytes() for entry in ENTRIES]
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        for name, content in [
            ("../../outside.safetensors", contents[0]),
            ("/tmp/absolute.safetensors", contents[1][:-1]),
            ("chunks/aa/other-name.safetensors", contents[2]),
            ("note.txt", b"not a chunk"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.safetensors")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    other = tmp_path / "deep" / "other"
    before = set(tmp_path.rglob("*"))
    status, out, _ = run("import", tmp_path / "evil.tar", "--store", other)
    assert status == 1
    assert keys(other) == keys_of(ENTRIES[0], ENTRIES[2])
    for name in ("/tmp/absolute.safetensors", "note.txt", "link.safetensors"):
        assert f"refused {name}: " in out
    outside = {path for path in set(tmp_path.rglob("*")) - before if other not in path.parents and path != other}
    assert outside <= {other.parent}
    assert not Path("/tmp/absolute.safetensors").exists()


def test_import_replaces_a_damaged_chunk(run: Run, folder: Path, tmp_path: Path) -> None:
    run("export", tmp_path / "all.tar", "--store", folder)
    damage(file_of(folder, ENTRIES[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, out, _ = run("import", tmp_path / "all.tar", "--store", folder)
    assert out.startswith("imported 1 chunk, ") and "3 were there already" in out
    assert run("verify", "--store", folder)[0] == 0


@pytest.mark.parametrize("content", [None, b"no archive", b""])
def test_a_source_that_is_no_archive_is_refused(run: Run, folder: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "file.tar").write_bytes(content)
    status, out, error = run("import", tmp_path / "file.tar", "--store", folder)
    assert (status, out) == (1, "")
    assert "is not a tar file of chunks" in error and len(error.splitlines()) == 1


# -- wrong usage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["stat", "ls", "verify", "rebuild-index"])
def test_a_folder_without_a_store_is_said_to_be_none_and_not_made_one(run: Run, tmp_path: Path, command: str) -> None:
    status, out, error = run(command, "--store", tmp_path / "nothing")
    assert (status, out) == (1, "")
    assert "holds no store" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["prune"], 1, "nothing says what to prune"),
        (["prune", "--older-than", "soon"], 1, "not a length of time"),
        (["prune", "--max-bytes", "10 apples"], 1, "not a number of bytes"),
        (["prune", "--keep-sources", "/no/such/file"], 1, "/no/such/file"),
        (["prune", "--nonsense"], 2, "--help"),
        (["nonsense"], 2, "--help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_line(run: Run, folder: Path, arguments: list[str], status: int, words: str) -> None:
    found, out, error = run(*arguments, *(["--store", folder] if arguments[0] == "prune" else []))
    assert (found, out) == (status, "")
    assert words in error and len(error.splitlines()) == 1
    assert keys(folder) == keys_of(*ENTRIES)


def test_no_command_shows_help(run: Run) -> None:
    status, out, _ = run()
    assert status == 2
    assert "rebuild-index" in out


@pytest.mark.parametrize(
    ("text", "amount"), [("0", 0), ("10GB", 10**10), ("1.5kb", 1500), ("2 MiB", 2**21), ("7B", 7), ("1tb", 10**12)]
)
def test_bytes_are_parsed(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(("text", "seconds"), [("30d", 2592000), ("12h", 43200), ("1.5m", 90), ("2w", 1209600)])
def test_times_are_parsed(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "10XB", "ten", "1e3", "10 GB left"])
def test_other_amounts_are_refused(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(ConfigurationError, match="give one such as"):
            parse(text)


def test_bytes_are_printed_in_a_fitting_unit() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 40_120_000_000)] == ["0 bytes", "999 bytes", "1.0 KB", "40.1 GB"]


def test_listing_needs_no_torch() -> None:
    """The commands start without a model's libraries; only opening a store brings them."""
    code = "import sys, samkv_rag.cli_store; assert not {'torch', 'safetensors', 'sqlite3'} & set(sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
