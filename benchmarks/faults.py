"""Faults of a disk store: killed processes, damaged files and a full disk.

    python -m benchmarks.faults [--storage index] [--kills 200] [--damages 1000] [--json FILE]

Every answer of a small model with random weights is compared with that of an engine without a store. The exit status
is 1 if a stored chunk was lost, a wrong one was served, or damage went unnoticed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.machine import describe_machine
from benchmarks.synthetic import byte_tokenizer, chunk_text, prompt, random_model
from samkv_apps.store.admin import verify
from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.config import Storage
from samkv_rag.exceptions import DamagedChunkError, StoreFullError
from samkv_rag.prefill import Scout
from samkv_rag.store import Store, open_store
from samkv_rag.store.base import read_bytes

_REFERENCE = "the seventh keeper"
_LONGEST_LIFE_S = 0.08
_CATALOG_BYTES = 400_000
_config: dict[str, Any] = {}
"""Options of every engine's ``EngineConfig``."""
Answer = tuple[tuple[int, ...], float]
"""Token ids and the mean negative log-likelihood of a reference."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the suite, print each result, and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=get_args(Storage), default="full", help="what is stored of a chunk")
    parser.add_argument("--kills", type=int, default=200, help="writers killed, four at a time at work")
    parser.add_argument("--damages", type=int, default=1000, help="byte flips, truncations and swapped files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    chooser = random.Random(options.seed)
    _config["storage"] = options.storage
    suites: dict[str, Callable[[Path], dict[str, Any]]] = {
        "killed": lambda folder: kill_writers(folder, options.kills, chooser),
        "damaged": lambda folder: damage_files(folder, options.damages, chooser),
        "full_disk": fill_disk,
        "two_stores": share_folder,
    }
    results: dict[str, Any] = {"machine": describe_machine(), "seed": options.seed, "storage": options.storage}
    for name, suite in suites.items():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results[name] = suite(Path(folder))
        results[name]["elapsed_s"] = round(time.perf_counter() - started, 1)
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(any(results[name].get("passed") is False for name in suites))


def engine_on(store: Store | Path | str) -> SamKVEngine:
    """An engine that uses caches for prompts of any length."""
    method, config = Scout(min_chunk_tokens=0), EngineConfig(**_config)
    return SamKVEngine.from_pretrained(
        random_model("tiny"), tokenizer=byte_tokenizer(), store=store, config=config, method=method
    )


def ask(engine: SamKVEngine, texts: list[str]) -> tuple[Answer, int]:
    """Answer over chunks of these texts, and count those that were stored."""
    engine.announce(texts)  # as a retriever does, so that chunks are recognised without the catalog
    # A refresh that meets damage leaves the answer as it is, which is right, but another one.
    result = engine.generate_scored(prompt(texts), _REFERENCE, max_new_tokens=8, method=Scout(refresh_tokens=None))
    assert result.reference_nll is not None
    return (result.token_ids, result.reference_nll), result.metrics.chunks_hit


def differ(one: Answer, other: Answer) -> bool:
    """Whether tokens differ, or likelihoods by more than rounding."""
    return one[0] != other[0] or abs(one[1] - other[1]) > 1e-4


def kill_writers(folder: Path, num_kills: int, chooser: random.Random, num_chunks: int = 200) -> dict[str, Any]:
    """Let four processes put chunks into one store, kill one at a time, and check the store."""
    texts = [chunk_text(number) for number in range(num_chunks)]
    chunks = _encoded(texts)
    log, path = folder / "acknowledged", folder / "store"
    open_store(path).close()
    writers = [_start_writer(path, chunks, slot, log) for slot in range(4)]
    num_reads = num_wrong = 0
    with open_store(path) as store:
        try:
            for _ in range(num_kills):
                ends = time.monotonic() + chooser.uniform(0.0, _LONGEST_LIFE_S)
                while time.monotonic() < ends:
                    key, data = chooser.choice(chunks)
                    num_wrong += _content(store, key) not in (None, data)
                    num_reads += 1
                slot = chooser.randrange(4)
                _kill(writers[slot])
                writers[slot] = _start_writer(path, chunks, slot, log)
        finally:
            for writer in writers:
                _kill(writer)
        acknowledged = {int(line) for line in log.read_text().split()}
        contents = {key: _content(store, key) for key, _ in chunks}
        num_lost = sum(contents[chunks[number][0]] is None for number in acknowledged)
        num_wrong += sum(contents[key] not in (None, data) for key, data in chunks)
        for leftover in path.rglob(".writing-*"):
            os.utime(leftover, (0, 0))  # younger ones may be a living writer's
        checked = verify(store)
    asked = [chooser.sample(texts, 4) for _ in range(20)]
    with engine_on(path) as stored, engine_on(":memory:") as fresh:
        num_differing = sum(differ(ask(stored, some)[0], ask(fresh, some)[0]) for some in asked)
    num_left = sum(1 for _ in path.rglob(".writing-*"))
    return {
        "passed": not (num_lost or num_wrong or checked.damaged or num_differing or num_left),
        "num_kills": num_kills,
        "num_chunks_acknowledged": len(acknowledged),
        "num_lost": num_lost,
        "num_wrong": num_wrong,
        "num_reads_meanwhile": num_reads,
        "num_damaged_files": len(checked.damaged),
        "num_leftovers_removed": checked.num_leftovers,
        "num_leftovers_remaining": num_left,
        "num_answers": len(asked),
        "num_answers_differing": num_differing,
    }


def damage_files(folder: Path, num_rounds: int, chooser: random.Random) -> dict[str, Any]:
    """Damage a store's files in rounds and ask over all chunks; chunks may be missed, but answers must not differ."""
    texts = [chunk_text(number) for number in range(6)]
    with engine_on(folder / "store") as engine:
        engine.add_chunks(texts, show_progress=False)
        right, _ = ask(engine, texts)
    files = sorted((folder / "store").rglob("*.safetensors"))
    catalog = next((folder / "store").glob("*.sqlite*"))
    whole = {path: path.read_bytes() for path in [*files, catalog]}
    num_undetected = num_differing = num_served = 0
    for _ in range(num_rounds):
        damaged = _damage(chooser, files, catalog)
        with open_store(folder / "store") as store:
            found = verify(store).damaged
        num_undetected += {path.stem for path in damaged if path != catalog} != set(found)
        with engine_on(folder / "store") as engine:
            answer, num_hits = ask(engine, texts)
        num_differing += differ(answer, right)
        num_served += num_hits > len(texts) - sum(path != catalog for path in damaged)
        for path, data in whole.items():
            path.write_bytes(data)
    return {
        # An index is read in full. A full chunk is not; damage in unread parts does not change the answer.
        "passed": not (num_undetected or num_differing or (num_served and _config["storage"] == "index")),
        "num_rounds": num_rounds,
        "num_undetected": num_undetected,
        "num_damaged_served": num_served,
        "num_answers_differing": num_differing,
    }


def fill_disk(folder: Path) -> dict[str, Any]:
    """Ingest into a store on a small disk until no more fits, and go on using it."""
    texts = [chunk_text(number) for number in range(100)]
    with engine_on(":memory:") as engine:
        half = engine.estimate_chunks(texts[::2]).num_bytes
    try:
        with (
            _small_disk(folder, half + _CATALOG_BYTES),
            engine_on(folder / "store") as engine,
            engine_on(":memory:") as fresh,
        ):
            said_so = False
            try:
                engine.add_chunks(texts, show_progress=False)
            except StoreFullError:
                said_so = True
            stored = [text for text in texts if engine.has_chunk(text)]
            absent = [text for text in texts if text not in stored]
            questions = [stored[:4], [*stored[:2], *absent[:2]]]
            num_differing = sum(differ(ask(engine, some)[0], ask(fresh, some)[0]) for some in questions)
            checked = verify(engine.store)
            engine.remove_chunks(stored[:10])
            engine.add_chunks(stored[:1], show_progress=False)
            goes_on = engine.has_chunk(stored[0])
    except PermissionError as error:
        return {"skipped": str(error)}
    return {
        "passed": said_so and bool(stored) and not num_differing and not checked.damaged and goes_on,
        "said_so": said_so,
        "num_stored": len(stored),
        "num_answers_differing": num_differing,
        "num_damaged_files": len(checked.damaged),
        "stored_again_after_freeing": goes_on,
    }


def share_folder(folder: Path) -> dict[str, Any]:
    """Two engines on one folder: each sees what the other ingests or deletes at its next call."""
    texts = [chunk_text(number) for number in range(8)]
    with engine_on(folder / "store") as one, engine_on(folder / "store") as other:
        one.add_chunks(texts[:4], sources=list("abcd"), show_progress=False)
        other.add_chunks(texts[4:], sources=list("efgh"), show_progress=False)
        seen = [one.generate(prompt(texts), max_new_tokens=1).metrics.chunks_hit, ask(other, texts)[1]]
        one.remove_sources(list("efgh"))
        left = [engine.has_chunk(text) for engine in (one, other) for text in texts]
    return {"passed": seen == [8, 8] and left == [*[True] * 4, *[False] * 4] * 2, "hits": seen, "left": sum(left) // 2}


def _encoded(texts: Sequence[str]) -> list[tuple[str, bytes]]:
    """Keys and bytes of the texts' chunks, computed by the engine."""
    with engine_on(":memory:") as engine:
        engine.add_chunks(texts, show_progress=False)
        return [(found.key, bytes(_content(engine.store, found.key) or b"")) for found in engine.store.keys()]


def _content(store: Store, key: str) -> bytes | None:
    blob = store.get(key)
    try:
        return None if blob is None else bytes(read_bytes(blob))
    except DamagedChunkError:  # replaced since it was opened, so a miss
        return None


def _start_writer(folder: Path, chunks: Sequence[tuple[str, bytes]], slot: int, log: Path) -> int:
    """Fork a process that puts every fourth chunk, over and over, from a random one on."""
    process = os.fork()
    if process:
        return process
    with suppress(BaseException):
        own = range(slot, len(chunks), 4)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        store, start = open_store(folder), random.SystemRandom().randrange(len(own))
        while True:
            for number in (*own[start:], *own[:start]):
                store.put(*chunks[number])
                os.write(descriptor, f"{number}\n".encode())
    os._exit(1)


def _kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError(f"a writer ended by itself with status {status}; a put must have failed")


def _damage(chooser: random.Random, files: list[Path], catalog: Path) -> list[Path]:
    """Flip a byte, truncate a file, or swap the contents of two files; sometimes damage the catalog."""
    one, other = chooser.sample(files, 2)
    kind = chooser.choice(["flip", "truncate", "swap", "catalog"])
    data = bytearray(one.read_bytes())
    if kind == "catalog":
        one, data = catalog, bytearray(catalog.read_bytes())
        for _ in range(20):
            data[chooser.randrange(len(data))] = chooser.randrange(256)
    elif kind == "swap":
        exchanged = other.read_bytes()
        other.write_bytes(data)
        one.write_bytes(exchanged)
        return [one, other]
    elif kind == "flip":
        data[chooser.randrange(len(data))] ^= chooser.randrange(1, 256)
    else:
        data = data[: chooser.randrange(len(data))]
    one.write_bytes(data)
    return [one]


@contextmanager
def _small_disk(folder: Path, num_bytes: int) -> Iterator[None]:
    """Mount a file system in memory of ``num_bytes`` at ``folder``.

    Raises:
        PermissionError: this process may not mount one.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "samkv", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


if __name__ == "__main__":
    main()
