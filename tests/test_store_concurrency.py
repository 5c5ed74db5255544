"""Eight threads ask one engine at once, over each kind of store; a process is forked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import stores
import tiny
from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag import SamKVEngine
from samkv_rag.store import DiskStore, KVStore, MemoryStore, TieredStore
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


_PUT_IN_A_FORK = """
import os, signal, sys
from chunks import make_cache, make_entry
from samkv_rag.store import open_store

store = open_store(sys.argv[1], memory_bytes=1 << 20)
store.put(make_entry("a text of the parent"), make_cache())
store.flush()
child = os.fork()
if child == 0:
    signal.alarm(20)
    store.put(make_entry("a text of the child"), make_cache())
    store.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
def test_a_fork_of_a_process_goes_on_with_its_store(tmp_path: Path) -> None:
    """A server that loads the engine and then forks its workers."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", _PUT_IN_A_FORK, str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=120)
    with DiskStore(tmp_path) as store:
        keys = {entry.key for entry in (store.changes(FINGERPRINT, 0) or ([], 0))[0]}
    assert keys == {make_entry(f"a text of the {who}").key for who in ("parent", "child")}


_LIST = """
import sqlite3, sys

index = sqlite3.connect(sys.argv[1])
print(index.execute("SELECT count(*) FROM chunks").fetchone()[0])
index.close()
"""


def count_from_another_process(store: DiskStore) -> int:
    done = subprocess.run([sys.executable, "-c", _LIST, str(store.index.path)], capture_output=True, check=True)
    return int(done.stdout)


def test_two_stores_on_a_folder_keep_what_another_process_looks_at(tmp_path: Path) -> None:
    """To close any descriptor of the index drops the locks of its process; the next reader then deletes the log."""
    with DiskStore(tmp_path) as store, DiskStore(tmp_path) as second:
        store.put(make_entry("a text put before"), make_cache())
        assert count_from_another_process(store) == 1
        assert Path(f"{store.index.path}-wal").exists(), "another process deleted the log that this one writes"
        store.put(make_entry("a text put afterwards"), make_cache())
        second.refer(FINGERPRINT, {"source": make_entry("a text put afterwards").key})
        assert count_from_another_process(store) == 2
