"""What only a remote store can do wrong: many writers, lost answers, damaged objects."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch

import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import DamagedChunkWarning, SamKVEngine
from samkv_rag.exceptions import StoreError, StoreFullError, StoreUnreachableError, StoreUnreachableWarning
from samkv_rag.store import RemoteStore
from samkv_rag.store.remote.log import MERGED_SEGMENTS
from samkv_rag.store.shared.reachability import Outage, redacted

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(100)]


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}"


def keys(store: RemoteStore) -> list[str]:
    return [entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]]


def segments(store: RemoteStore) -> list[str]:
    return store._files.names(f"index/{FINGERPRINT}")


def test_two_machines_see_each_other(url: str) -> None:
    one, two = RemoteStore(url, refresh_s=0), RemoteStore(url, refresh_s=0)
    one.put(ENTRIES[0], make_cache())
    assert keys(two) == [ENTRIES[0].key]
    _, mark = two.changes(FINGERPRINT, 0) or ([], 0)
    reader = two.open(ENTRIES[0].key, FINGERPRINT)
    assert reader is not None and torch.equal(reader.layer(1)[1], make_cache().values[1])
    one.remove([ENTRIES[0].key])
    assert two.changes(FINGERPRINT, mark) is None
    assert two.open(ENTRIES[0].key, FINGERPRINT) is None


def test_the_list_is_not_asked_for_more_often_than_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = RemoteStore(url, refresh_s=0), RemoteStore(url, refresh_s=3600)
    assert keys(two) == []
    one.put(ENTRIES[0], make_cache())
    calls: list[str] = []
    monkeypatch.setattr(two._files, "names", lambda folder: calls.append(folder) or [])
    assert keys(two) == [] and two.open(ENTRIES[0].key, FINGERPRINT) is None
    assert calls == []


def test_small_lists_are_merged_and_nothing_is_lost(url: str) -> None:
    store = RemoteStore(url, refresh_s=0)
    for entry in ENTRIES:
        store.put(entry, make_cache())
        store.put(entry, make_cache())
    assert len(segments(store)) < 2 * MERGED_SEGMENTS
    expected = sorted(entry.key for entry in ENTRIES)
    assert sorted(keys(store)) == sorted(keys(RemoteStore(url))) == expected
    store.remove(expected[:50])
    assert sorted(keys(RemoteStore(url))) == expected[50:]


def test_machines_write_remove_and_merge_at_once(url: str) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            store = RemoteStore(url, refresh_s=0)
            for entry in ENTRIES[number::4]:
                store.put(entry, make_cache())
            store.remove([entry.key for entry in ENTRIES[number::4][:5]])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    store = RemoteStore(url, refresh_s=0)
    opened = {entry.key for entry in ENTRIES if store.open(entry.key, FINGERPRINT) is not None}
    assert opened == {entry.key for entry in ENTRIES[20:]}
    assert set(keys(store)) == opened


def test_a_chunk_deleted_behind_our_back_is_listed_no_more(url: str) -> None:
    store = RemoteStore(url, refresh_s=0)
    store.put(ENTRIES[0], make_cache())
    store.put(ENTRIES[1], make_cache())
    store._files.remove([f"chunks/{ENTRIES[0].key[:2]}/{ENTRIES[0].key}.safetensors"])
    assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    assert keys(store) == keys(RemoteStore(url)) == [ENTRIES[1].key]


@pytest.mark.parametrize("where", [9, 400, 3000, -1])
def test_a_damaged_object_is_a_miss_that_names_it(tmp_path: Path, where: int) -> None:
    store = RemoteStore(f"file://{tmp_path}")
    store.put(ENTRIES[0], make_cache())
    (path,) = (tmp_path / "chunks").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[where] ^= 0x11
    path.write_bytes(content)
    with pytest.warns(DamagedChunkWarning, match=path.name):
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    path.write_bytes(content[: len(content) // 2])
    with pytest.warns(DamagedChunkWarning, match=path.name):
        assert store.fetch(ENTRIES[0].key, FINGERPRINT) is None
    store.put(ENTRIES[0], make_cache())
    assert store.open(ENTRIES[0].key, FINGERPRINT) is not None


def test_another_chunks_object_is_a_miss(tmp_path: Path) -> None:
    store = RemoteStore(f"file://{tmp_path}")
    for entry in ENTRIES[:2]:
        store.put(entry, make_cache())
    first, second = sorted((tmp_path / "chunks").rglob("*.safetensors"))
    first.write_bytes(second.read_bytes())
    with pytest.warns(DamagedChunkWarning, match="it holds another chunk"):
        assert store.open(first.stem, FINGERPRINT) is None


def test_a_damaged_list_lists_nothing_and_names_itself(tmp_path: Path) -> None:
    RemoteStore(f"file://{tmp_path}").put(ENTRIES[0], make_cache())
    (path,) = (tmp_path / "index" / FINGERPRINT).iterdir()
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x01
    path.write_bytes(content)
    with pytest.warns(DamagedChunkWarning, match=path.name):
        assert keys(RemoteStore(f"file://{tmp_path}")) == []


def test_files_of_a_shared_folder_are_private(tmp_path: Path) -> None:
    RemoteStore(f"file://{tmp_path}/kv").put(ENTRIES[0], make_cache())
    found = list((tmp_path / "kv").rglob("*"))
    assert len([path for path in found if path.is_file()]) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in found)


def test_only_hashes_become_paths(url: str) -> None:
    store = RemoteStore(url)
    for key in ("../../etc/passwd", "a" * 63, "A" * 64):
        with pytest.raises(StoreError, match="is not a SHA-256 in hex"):
            store.open(ENTRIES[0].key, key)


# -- a remote that fails ---------------------------------------------------------------------------


class Failing:
    """Stands for fsspec's file system: fails in one way, or takes for ever."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.released = threading.Event()
        self.num_calls = 0

    def fail(self, *arguments: Any, **options: Any) -> None:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        self.released.wait(20)

    invalidate_cache = ls = cat_file = pipe_file = makedirs = rm_file = fail


def fail(store: RemoteStore, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> Failing:
    failing = Failing(error)
    monkeypatch.setattr(store._files, "_fs", failing)
    return failing


def test_while_the_remote_fails_chunks_are_misses_with_one_warning(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore(url, refresh_s=0)
    store.put(ENTRIES[0], make_cache())
    _, mark = store.changes(FINGERPRINT, 0) or ([], 0)
    failing = fail(store, monkeypatch, ConnectionError("the network is down"))
    with pytest.warns(StoreUnreachableWarning, match="the network is down"):
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            assert store.open(ENTRIES[0].key, FINGERPRINT) is None
            with pytest.raises(StoreUnreachableError, match="the network is down"):
                store.changes(FINGERPRINT, mark)
    assert failing.num_calls == 1, "later calls wait for the first one's failure to grow old"
    for call in (lambda: store.put(ENTRIES[1], make_cache()), lambda: store.remove([ENTRIES[0].key]), store.nbytes):
        with pytest.raises(StoreUnreachableError, match="it is tried again in"):
            call()


def test_a_remote_that_never_answers_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore(url, timeout_s=0.1, refresh_s=0)
    failing = fail(store, monkeypatch)
    with pytest.warns(StoreUnreachableWarning, match=r"no answer within 0.1 s"):
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    failing.released.set()


def test_the_remote_is_used_again_once_it_answers(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    store = RemoteStore(url, refresh_s=0)
    store.put(ENTRIES[0], make_cache())
    monkeypatch.setattr(store._files, "_outage", Outage("here", retry_after_s=10, clock=lambda: now_s[0]))
    working = store._files._fs
    fail(store, monkeypatch, OSError("lost"))
    with pytest.warns(StoreUnreachableWarning, match="lost"):
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    monkeypatch.setattr(store._files, "_fs", working)
    assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    now_s[0] = 11
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.open(ENTRIES[0].key, FINGERPRINT) is not None


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PermissionError("403"), StoreError, "refuses access"),
        (OSError(28, "No space left on device"), StoreFullError, "is full"),
        (RuntimeError("anything a backend raises"), StoreUnreachableError, "RuntimeError: anything"),
    ],
)
def test_errors_are_ours(
    url: str, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    store = RemoteStore(url)
    fail(store, monkeypatch, error)
    with pytest.raises(kind, match=message):
        store.put(ENTRIES[0], make_cache())


def test_an_engine_answers_the_same_while_its_remote_is_lost(
    make_engine: Callable[..., SamKVEngine], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [tiny.text(seed) for seed in range(3)]
    store = RemoteStore(url, refresh_s=0)
    engine = make_engine(store=store)
    engine.add_chunks(chunks)
    expected = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=8)
    fail(store, monkeypatch, ConnectionError("the network is down"))
    with pytest.warns(UserWarning, match="the network is down"):
        found = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=8)
    assert found.token_ids == expected.token_ids
    assert (expected.metrics.chunks_hit, found.metrics.chunks_missed) == (3, 3)


def test_a_list_that_cannot_be_read_is_not_merged_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be whole, and only this reader's copy of it cut short."""
    RemoteStore(url).refer(FINGERPRINT, {"node": ENTRIES[0].key})
    store = RemoteStore(url)
    read_all = store._files.read_all
    monkeypatch.setattr(store._files, "read_all", lambda paths: [data and data[:-1] for data in read_all(paths)])
    with pytest.warns(DamagedChunkWarning, match="checksum differs"):
        store.references(FINGERPRINT)
    for i in range(MERGED_SEGMENTS):
        store._index.point(FINGERPRINT, {f"node {i}": ENTRIES[i].key})
    assert RemoteStore(url).references(FINGERPRINT)["node"] == ENTRIES[0].key


@pytest.mark.parametrize("password", ["secret", "sec@ret", "s:e@c@ret"])
def test_messages_show_no_password(password: str) -> None:
    assert redacted(f"redis://user:{password}@host:6379/1?token={password}") == "redis://host:6379/1"
    assert redacted("s3://bucket/a@b") == "s3://bucket/a@b"
