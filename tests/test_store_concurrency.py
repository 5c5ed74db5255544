"""Eight threads ask one engine at once, over each kind of store."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import stores
import tiny
from samkv_rag import SamKVEngine
from samkv_rag.store import KVStore, MemoryStore, TieredStore
from samkv_rag.store.base import EncodedChunk

CHUNKS = [tiny.text(seed) for seed in range(6)]
PROMPTS = [tiny.rag_prompt(CHUNKS[i % 3 : i % 3 + 4], f"Question number {i}?") for i in range(8)]


def ask_at_once(engine: SamKVEngine) -> list[tuple[int, ...]]:
    found: dict[int, tuple[int, ...]] = {}

    def ask(i: int) -> None:
        engine.hint(CHUNKS)
        found[i] = engine.generate(PROMPTS[i], max_new_tokens=6).token_ids

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    return [found[i] for i in range(8)]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, ...]]:
    engine = SamKVEngine.from_pretrained(tiny.model(), tokenizer=tiny.tokenizer(), config=tiny_config())
    engine.add_chunks(CHUNKS)
    return [engine.generate(prompt, max_new_tokens=6).token_ids for prompt in PROMPTS]


def tiny_config() -> object:
    from samkv_rag import SamKVConfig

    return SamKVConfig(min_chunk_tokens=0, block_tokens=8)


@pytest.mark.parametrize("kind", list(stores.KINDS))
def test_answers_are_those_of_one_by_one(
    kind: str,
    make_engine: Callable[..., SamKVEngine],
    make_store: Callable[[str], KVStore],
    expected: list[tuple[int, ...]],
) -> None:
    engine = make_engine(store=make_store(kind))
    engine.add_chunks(CHUNKS)
    assert ask_at_once(engine) == expected


def test_memory_stays_bounded_where_the_budget_holds_fewer_chunks_than_are_asked_for(
    make_engine: Callable[..., SamKVEngine], expected: list[tuple[int, ...]]
) -> None:
    far = MemoryStore()
    make_engine(store=far).add_chunks(CHUNKS)
    chunk_bytes = far.nbytes() // len(CHUNKS)
    budget_bytes, largest = int(2.5 * chunk_bytes), [0]

    class Watched(MemoryStore):
        def put_encoded(self, chunk: EncodedChunk) -> None:
            super().put_encoded(chunk)
            largest[0] = max(largest[0], self.nbytes())

    near = Watched(budget_bytes)
    engine = make_engine(store=TieredStore(near, far))
    assert ask_at_once(engine) == expected
    assert chunk_bytes < largest[0] <= budget_bytes
