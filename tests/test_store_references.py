"""References from sources to chunks: one contract, run on every store, and the engine's calls that use it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stores
import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, EmptyChunkError, StoreError
from samkv_rag.serving.sources import ids_of, source_names
from samkv_rag.store import DiskStore, KVStore

OTHER = "b" * 64


@pytest.fixture(params=list(stores.KINDS))
def store(request: pytest.FixtureRequest, make_store: Callable[[str], KVStore]) -> KVStore:
    return make_store(request.param)


def put(store: KVStore, text: str, fingerprint: str = FINGERPRINT) -> str:
    entry = make_entry(text, fingerprint)
    store.put(entry, make_cache(fingerprint=fingerprint))
    return entry.key


def stored(store: KVStore, fingerprint: str = FINGERPRINT) -> set[str]:
    entries, _ = store.changes(fingerprint, 0) or ([], 0)
    for entry in entries:
        assert store.open(entry.key, fingerprint) is not None
    return {entry.key for entry in entries}


def test_references_are_read_back(store: KVStore) -> None:
    key = put(store, "a text of some length")
    assert store.references(FINGERPRINT) == {}
    assert store.refer(FINGERPRINT, {"one": key, "two": key}) == 0
    assert store.references(FINGERPRINT) == {"one": key, "two": key}
    assert store.refer(FINGERPRINT, {}) == 0


def test_a_chunk_goes_with_its_last_reference(store: KVStore) -> None:
    key = put(store, "a text of some length")
    store.refer(FINGERPRINT, {"one": key, "two": key})
    assert store.release(FINGERPRINT, ["one", "one", "unknown"]) == 0
    assert stored(store) == {key}
    assert store.release(FINGERPRINT, ["two"]) == 1
    assert stored(store) == set()
    assert store.references(FINGERPRINT) == {}


def test_chunks_never_referred_to_stay(store: KVStore) -> None:
    free, referred = put(store, "a chunk without a source"), put(store, "a chunk with a source")
    store.refer(FINGERPRINT, {"one": referred})
    assert store.release(FINGERPRINT, store.references(FINGERPRINT)) == 1
    assert stored(store) == {free}


def test_a_changed_source_lets_its_former_chunk_go(store: KVStore) -> None:
    old, new = put(store, "the text before its change"), put(store, "the text after its change")
    store.refer(FINGERPRINT, {"one": old})
    assert store.refer(FINGERPRINT, {"one": new}) == 1
    assert stored(store) == {new}
    assert store.references(FINGERPRINT) == {"one": new}


def test_texts_may_swap_their_sources(store: KVStore) -> None:
    first, second = put(store, "the first of two texts"), put(store, "the second of two texts")
    store.refer(FINGERPRINT, {"one": first, "two": second})
    assert store.refer(FINGERPRINT, {"one": second, "two": first}) == 0
    assert stored(store) == {first, second}


def test_the_same_reference_again_changes_nothing(store: KVStore) -> None:
    key = put(store, "a text of some length")
    store.refer(FINGERPRINT, {"one": key})
    assert store.refer(FINGERPRINT, {"one": key}) == 0
    assert stored(store) == {key}


def test_models_have_their_own_sources(store: KVStore) -> None:
    mine, other = put(store, "a text of some length"), put(store, "a text of some length", OTHER)
    store.refer(FINGERPRINT, {"one": mine})
    store.refer(OTHER, {"one": other})
    assert store.release(FINGERPRINT, ["one"]) == 1
    assert (stored(store), stored(store, OTHER)) == (set(), {other})
    assert store.references(OTHER) == {"one": other}


def test_a_reference_may_precede_its_chunk(store: KVStore) -> None:
    key = make_entry("a text of some length").key
    store.refer(FINGERPRINT, {"one": key})
    assert put(store, "a text of some length") == key
    assert store.release(FINGERPRINT, ["one"]) == 1
    store.refer(FINGERPRINT, {"one": key})
    assert store.release(FINGERPRINT, ["one"]) == 0, "no chunk was there"


def test_removing_a_chunk_forgets_who_referred_to_it(store: KVStore) -> None:
    key, kept = put(store, "a text of some length"), put(store, "a text that stays")
    store.refer(FINGERPRINT, {"one": key, "two": kept})
    assert store.remove([key]) == 1
    assert store.references(FINGERPRINT) == {"two": kept}


def test_putting_a_chunk_again_keeps_its_references(store: KVStore) -> None:
    key = put(store, "a text of some length")
    store.refer(FINGERPRINT, {"one": key})
    put(store, "a text of some length")
    assert store.references(FINGERPRINT) == {"one": key}


def test_any_text_names_a_source(store: KVStore) -> None:
    """Paths that are no valid text come from a file system with lone surrogates in them."""
    key = put(store, "a text of some length")
    references = dict.fromkeys(["notes/\udcff.md", "a\nb\tc", "\0", "x" * 5000, "other"], key)
    store.refer(FINGERPRINT, references)
    assert store.references(FINGERPRINT) == references
    assert store.release(FINGERPRINT, list(references)[1:]) == 0
    assert store.release(FINGERPRINT, ["notes/\udcff.md"]) == 1
    assert store.references(FINGERPRINT) == {}


def test_a_source_refers_to_a_key_and_nothing_else(store: KVStore) -> None:
    wrong: list[Any] = ["no key", "A" * 64, "a" * 63 + "\n", "../" + "a" * 61, 5]
    for key in wrong:
        with pytest.raises(StoreError, match="SHA-256 in hex"):
            store.refer(FINGERPRINT, {"source": key})
    assert store.references(FINGERPRINT) == {}


def test_readers_notice_what_a_release_removed(store: KVStore) -> None:
    key = put(store, "a text of some length")
    store.refer(FINGERPRINT, {"one": key})
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    store.release(FINGERPRINT, ["one"])
    assert store.changes(FINGERPRINT, mark) is None


# -- disk only -----------------------------------------------------------------------------------


def test_references_outlive_the_process(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as before:
        key = put(before, "a text of some length")
        before.refer(FINGERPRINT, {"one": key, "two": key})
    with DiskStore(tmp_path) as again:
        assert again.references(FINGERPRINT) == {"one": key, "two": key}
        assert again.release(FINGERPRINT, ["one"]) == 0
    with DiskStore(tmp_path) as last:
        assert last.release(FINGERPRINT, ["two"]) == 1
        assert list(tmp_path.rglob("*.safetensors")) == []


def test_an_index_of_an_earlier_version_gains_the_table(tmp_path: Path) -> None:
    with DiskStore(tmp_path) as store:
        key = put(store, "a text of some length")
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("DROP TABLE chunk_references")
    with DiskStore(tmp_path) as again:
        assert stored(again) == {key}
        again.refer(FINGERPRINT, {"one": key})
        assert again.references(FINGERPRINT) == {"one": key}


def test_a_failed_removal_leaves_references_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path)
    key = put(store, "a text of some length")
    store.refer(FINGERPRINT, {"one": key})

    def fail(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store, "_remove", fail)
    with pytest.raises(StoreError, match="Input/output"):
        store.release(FINGERPRINT, ["one"])
    assert store.references(FINGERPRINT) == {"one": key}
    assert stored(store) == {key}


def test_processes_count_the_same_references(tmp_path: Path) -> None:
    """Two processes point sources at one chunk, again and again, and take all but their last back."""
    with DiskStore(tmp_path) as store:
        key = put(store, "a text of some length")
        store.refer(FINGERPRINT, {"anchor": key})
    code = (
        "import sys; from samkv_rag.store import DiskStore\n"
        "folder, fingerprint, key, me = sys.argv[1:]\n"
        "store = DiskStore(folder)\n"
        "print('ready', flush=True)\n"
        "for i in range(20):\n"
        "    store.refer(fingerprint, {f'{me}-{i}': key})\n"
        "    store.release(fingerprint, [f'{me}-{i - 1}'])\n"
    )
    arguments = [sys.executable, "-c", code, os.fspath(tmp_path), FINGERPRINT, key, "child"]
    with DiskStore(tmp_path) as store, subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        number = 0
        while process.poll() is None:
            store.refer(FINGERPRINT, {f"parent-{number + 1}": key})
            store.release(FINGERPRINT, [f"parent-{number}"])
            number += 1
        assert process.returncode == 0
        assert store.references(FINGERPRINT) == dict.fromkeys(["anchor", "child-19", f"parent-{number}"], key)
        assert store.release(FINGERPRINT, ["anchor", "child-19"]) == 0
        assert store.release(FINGERPRINT, [f"parent-{number}"]) == 1


# -- through the engine --------------------------------------------------------------------------


def test_sources_keep_chunks_and_take_them_along(tiny_engine: SamKVEngine) -> None:
    twin, single = tiny.text(1), tiny.text(2)
    report = tiny_engine.add_chunks([twin, f" {twin}\n", single], sources=["a", "b", "c"])
    assert (report.num_added, sorted(tiny_engine.sources())) == (2, ["a", "b", "c"])
    assert tiny_engine.remove_sources(["a", "c"]) == 1
    assert tiny_engine.has_chunk(twin) and not tiny_engine.has_chunk(single)
    assert tiny_engine.remove_sources("b") == 1
    tiny_engine.add_chunks([twin, single], sources=["a", None])
    assert tiny_engine.sources() == ["a"] and tiny_engine.has_chunk(single)
    assert tiny_engine.remove_sources(["a"]) == 1
    assert not tiny_engine.has_chunk(twin)


def test_a_source_with_a_new_text_replaces_the_chunk(tiny_engine: SamKVEngine) -> None:
    tiny_engine.add_chunks([tiny.text(1)], sources=["a"])
    tiny_engine.add_chunks([tiny.text(2)], sources=["a"])
    assert not tiny_engine.has_chunk(tiny.text(1)) and tiny_engine.has_chunk(tiny.text(2))
    tiny_engine.add_chunks(["too short"], sources=["a"])
    assert not tiny_engine.has_chunk(tiny.text(2))


def test_a_chunk_released_while_it_was_being_added_is_computed_again(
    tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_engine.add_chunks([tiny.text(1)], sources=["before"])
    refer = tiny_engine.store.refer

    def released_first(fingerprint: str, references: dict[str, str]) -> int:
        tiny_engine.remove_sources(["before"])
        return refer(fingerprint, references)

    monkeypatch.setattr(tiny_engine.store, "refer", released_first)
    assert tiny_engine.add_chunks([tiny.text(1)], sources=["after"]).num_reused == 1
    assert tiny_engine.has_chunk(tiny.text(1))


def test_sources_survive_a_new_engine(make_engine: Callable[..., SamKVEngine], tmp_path: Path) -> None:
    make_engine(store=tmp_path).add_chunks([tiny.text(1)] * 2, sources=["a", "b"])
    again = make_engine(store=tmp_path)
    assert again.remove_sources(["a"]) == 0
    assert again.remove_sources(["b"]) == 1


def test_wrong_sources_are_refused_before_anything_is_computed(tiny_engine: SamKVEngine) -> None:
    for wrong in (["a"], "ab", []):
        with pytest.raises(ConfigurationError, match="sources for 2 chunks"):
            tiny_engine.add_chunks([tiny.text(1), tiny.text(2)], sources=wrong)
    for unnamed in ("", 7):
        with pytest.raises(ConfigurationError, match="is no name"):
            tiny_engine.add_chunks([tiny.text(1)], sources=[unnamed])  # type: ignore[list-item]
    with pytest.raises(EmptyChunkError):
        tiny_engine.add_chunks([tiny.text(1), " "], sources=["a", "b"])
    assert not tiny_engine.has_chunk(tiny.text(1)) and tiny_engine.sources() == []


def test_source_names_of_two_indexes_never_meet() -> None:
    names = [*source_names("a", ["b/c", "%2F"]), *source_names("a/b", ["c"]), *source_names("", ["a/b/c"])]
    assert len(set(names)) == 4
    assert ids_of("a", names) == ["b/c", "%2F"]
    assert ids_of("a/b", names) == ["c"]
    assert ids_of("", names) == ["a/b/c"]
