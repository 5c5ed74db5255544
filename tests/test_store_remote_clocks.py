"""Machines whose clocks differ share one remote store: what was done last counts, whatever the clocks say."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from chunks import FINGERPRINT, make_cache, make_entry
from samkv_rag.store import RemoteStore
from samkv_rag.store.remote import log as log_module
from samkv_rag.store.remote.log import MERGED_SEGMENTS

ENTRIES = [make_entry(f"text number {i} of the store") for i in range(2 * MERGED_SEGMENTS)]
HOUR_S = 3600
SetClock = Callable[[float], None]


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}"


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """A function: seconds by which the next machine's clock is off."""
    time_ns = time.time_ns

    def set_clock(off_s: float) -> None:
        monkeypatch.setattr(log_module.time, "time_ns", lambda: time_ns() + int(off_s * 1e9))

    return set_clock


def open_machine(url: str) -> RemoteStore:
    return RemoteStore(url, refresh_s=0)


@pytest.mark.parametrize("off_s", [-HOUR_S, HOUR_S])
def test_a_source_refers_to_what_it_was_pointed_at_last(url: str, set_clock: SetClock, off_s: float) -> None:
    one, two = open_machine(url), open_machine(url)
    for entry in ENTRIES[:3]:
        one.put(entry, make_cache())
    for store, clock_s, entry in ((one, 0.0, ENTRIES[0]), (two, off_s, ENTRIES[1]), (one, 0.0, ENTRIES[2])):
        set_clock(clock_s)
        store.refer(FINGERPRINT, {"document": entry.key})
        assert open_machine(url).references(FINGERPRINT) == {"document": entry.key}
    assert two.open(ENTRIES[2].key, FINGERPRINT) is not None, "a chunk in use was deleted"


def test_a_chunk_stored_again_has_its_new_entry(url: str, set_clock: SetClock) -> None:
    one, two = open_machine(url), open_machine(url)
    one.put(ENTRIES[0], make_cache())
    two.changes(FINGERPRINT, 0)
    again = replace(ENTRIES[0], layout=replace(ENTRIES[0].layout, block_tokens=16))
    set_clock(-HOUR_S)
    two.put(again, make_cache())
    assert open_machine(url).changes(FINGERPRINT, 0)[0] == [again]


def test_machines_agree_on_rows_of_one_moment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither knew of the other's: which one counts is arbitrary, but the same for all."""
    monkeypatch.setattr(log_module.time, "time_ns", lambda: 10**18)
    logs = [open_machine(url)._index._sources(FINGERPRINT) for _ in range(2)]
    for log, entry in zip(logs, ENTRIES[:2], strict=True):
        log.add({"document": entry.key})
    for log in logs:
        log.refresh(force=True)
    assert logs[0].rows() == logs[1].rows() == open_machine(url).references(FINGERPRINT)


def test_merging_keeps_what_was_done_last(url: str, set_clock: SetClock) -> None:
    one, two = open_machine(url), open_machine(url)
    one.refer(FINGERPRINT, {"document": ENTRIES[0].key})
    set_clock(-HOUR_S)
    for entry in ENTRIES:
        two.refer(FINGERPRINT, {"document": entry.key})
    assert len(two._files.names(f"references/{FINGERPRINT}")) < MERGED_SEGMENTS + 3
    assert open_machine(url).references(FINGERPRINT) == {"document": ENTRIES[-1].key}
