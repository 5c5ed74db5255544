"""What others may write into a place that machines share, and what they may forbid: misses, no failed question."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import xxhash

import servers
import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import DamagedChunkWarning, SamKVEngine
from samkv_rag.exceptions import StoreError, StoreUnreachableWarning
from samkv_rag.store import MemoryStore, RedisStore, RemoteStore, TieredStore
from samkv_rag.store.remote.log import Row, _formatted

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(3)]


def add_rows(store: RemoteStore, *rows: tuple[str, str]) -> None:
    """A segment with a right checksum, whatever its rows say."""
    segment = {name: Row(i, text) for i, (name, text) in enumerate(rows)}
    store._files.write(f"index/{FINGERPRINT}/0-{0:020d}-{uuid4().hex[:16]}.txt", _formatted(segment))


@pytest.fixture
def store() -> RemoteStore:
    store = RemoteStore(f"memory://{uuid4().hex}", refresh_s=0)
    store.put(ENTRIES[0], make_cache())
    return store


def keys(store: RemoteStore | RedisStore) -> list[str]:
    return [entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]]


@pytest.mark.parametrize("text", ["", "many\t{}", "-5\t{}", "7", "7\t" + "[" * 100_000, "9" * 5000 + "\t{}"])
def test_a_row_that_is_none_hides_no_other(store: RemoteStore, text: str) -> None:
    num_bytes = store.nbytes()
    assert num_bytes > 0
    add_rows(store, (ENTRIES[1].key, text))
    assert keys(store) == [ENTRIES[0].key]
    assert store.nbytes() in (num_bytes, num_bytes + 7)


def test_rows_of_the_wrong_types_are_not_listed(store: RemoteStore) -> None:
    fields = asdict(ENTRIES[1])
    for lie in ({"num_chars": "7"}, {"prefix": None}, {"num_tokens": -1}, {"layout": {}}):
        add_rows(store, (ENTRIES[1].key, f"9\t{json.dumps(fields | lie)}"))
        assert keys(store) == [ENTRIES[0].key]


def test_a_list_of_nonsense_is_damaged(store: RemoteStore) -> None:
    body = b"1\t" + b"[" * 100_000 + b"\tx\n"
    head = _formatted({}).split(b" ")[0]
    content = head + b" 1 " + xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body
    store._files.write(f"index/{FINGERPRINT}/0-{0:020d}-{'a' * 16}.txt", content)
    with pytest.warns(DamagedChunkWarning, match="its chunks are computed again"):
        assert keys(store) == [ENTRIES[0].key]


def test_an_entry_under_anothers_key_is_not_listed(redis: servers.RedisServer) -> None:
    with RedisStore(redis.url) as store:
        store._client.flushall()
        for entry in ENTRIES[:2]:
            store.put(entry, make_cache())
        name = f"samkv:1:{FINGERPRINT}:entries"
        store._client.hset(name, ENTRIES[1].key, store._client.hget(name, ENTRIES[0].key))
        assert keys(store) == [ENTRIES[0].key]
        with pytest.warns(DamagedChunkWarning):
            assert store.fetch(ENTRIES[1].key, FINGERPRINT) is None
        forged = replace(ENTRIES[1], text_digest=ENTRIES[0].text_digest)
        store._client.hset(name, ENTRIES[1].key, forged.to_json())
        assert keys(store) == [ENTRIES[0].key]


# -- credentials that run out ----------------------------------------------------------------------


def refuse(store: RemoteStore, monkeypatch: pytest.MonkeyPatch, *calls: str) -> None:
    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError("ExpiredToken")

    for call in calls:
        monkeypatch.setattr(store._files._fs, call, refused)


def test_a_refused_read_is_a_miss_with_one_warning(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(store, monkeypatch, "cat_file", "ls")
    with pytest.warns(StoreUnreachableWarning, match="refuses access"):
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.open(ENTRIES[0].key, FINGERPRINT) is None
    with pytest.raises(StoreError, match="check the credentials"):
        store.references(FINGERPRINT)


def test_a_refused_write_keeps_nobody_from_reading(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(store, monkeypatch, "pipe_file")
    with pytest.raises(StoreError, match="check the credentials"):
        store.put(ENTRIES[1], make_cache())
    assert store.open(ENTRIES[0].key, FINGERPRINT) is not None


@pytest.mark.parametrize("tiered", [False, True])
def test_questions_are_answered_when_credentials_have_run_out(
    make_engine: Callable[..., SamKVEngine], monkeypatch: pytest.MonkeyPatch, tiered: bool, tmp_path: Path
) -> None:
    chunks = [tiny.text(seed) for seed in range(2)]
    remote = RemoteStore(f"memory://{uuid4().hex}", refresh_s=0)
    engine = make_engine(store=TieredStore(MemoryStore(1000), remote) if tiered else remote)
    engine.add_chunks(chunks)
    expected = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=4)
    refuse(remote, monkeypatch, "cat_file", "ls", "pipe_file")
    with pytest.warns(UserWarning, match="refuses access"):
        assert engine.generate(tiny.rag_prompt(chunks), max_new_tokens=4).token_ids == expected.token_ids
