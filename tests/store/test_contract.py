"""Every kind of store keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samkv_rag.exceptions import DamagedChunkWarning
from samkv_rag.store import Store
from samkv_rag.store.base import read_bytes
from samkv_rag.store.testing import StoreContract
from support import stores
from support.engines import CHUNKS, PROMPT, MakeEngine


@pytest.fixture(params=stores.KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = stores.KINDS[request.param](request, tmp_path)
    yield opened
    opened.close()


class TestEveryStore(StoreContract):
    """The public suite."""


def test_an_engine_answers_from_it(store: Store, make_engine: MakeEngine) -> None:
    expected = make_engine(chunks=CHUNKS)
    engine = make_engine(store=store)
    engine.add_chunks(CHUNKS, sources=["a", "b", "c", "d"])
    result = engine.generate(PROMPT, max_new_tokens=6)
    assert result.token_ids == expected.generate(PROMPT, max_new_tokens=6).token_ids
    assert result.metrics.chunks_hit == 4
    again = make_engine(store=store)
    again.announce(CHUNKS)
    assert again.generate(PROMPT, max_new_tokens=6).metrics.chunks_hit == 4


def test_damage_is_a_miss_with_a_warning_and_is_replaced(store: Store, make_engine: MakeEngine) -> None:
    engine = make_engine(store=store, chunks=CHUNKS)
    expected = engine.generate(PROMPT, max_new_tokens=6)
    store.flush()
    keys = {engine._library._key(match.text_digest) for match in engine._library.find(PROMPT)}
    damages: list[Callable[[bytes], bytes]] = [_flip, lambda data: data[: len(data) // 2], lambda data: b"", _swap]
    for key, spoil in zip(sorted(keys), damages, strict=True):
        blob = store.get(key)
        assert blob is not None
        store.put(key, spoil(bytes(read_bytes(blob))))
    fresh = make_engine(store=store)
    fresh.announce(CHUNKS)
    with pytest.warns(DamagedChunkWarning, match="cannot be trusted: .*; it is computed again") as warned:
        result = fresh.generate(PROMPT, max_new_tokens=6)
    assert len(warned) == 4
    assert result.token_ids == expected.token_ids
    # The flipped byte is found when its layer is read; by then the others have been computed again and stored.
    assert (result.metrics.chunks_hit, result.metrics.chunks_missed) == (3, 1)
    assert fresh.generate(PROMPT, max_new_tokens=6).metrics.chunks_hit == 4


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def _swap(data: bytes) -> bytes:
    return data.replace(b'"shape"', b'"shapo"', 1)
