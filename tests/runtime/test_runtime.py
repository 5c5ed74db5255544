"""Many requests on one model: the same answers as one by one, fair turns, clean ends."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import (
    ConfigurationError,
    DamagedChunkError,
    EngineClosedError,
    PromptTooLongError,
    QueueFullError,
)
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import FullPrefill, PrefillContext, Prefilled, PrefillMethod, SparsePrefill, method_classes
from samkv_rag.runtime.refreshing import Refresher
from samkv_rag.runtime.sequence import ReadPrompt, Sequence
from support import tiny
from support.engines import MakeEngine, together

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 60), (2, 90), (3, 30), (4, 70))]


def prompts() -> list[str]:
    """Prompts with different chunks in different orders, so cache lengths and position gaps differ."""
    return [tiny.rag_prompt(CHUNKS[i % 4 :] + CHUNKS[: i % 3], f"Question number {i} of the tide?") for i in range(6)]


@pytest.fixture
def engine(make_engine: MakeEngine) -> SamKVEngine:
    return make_engine(chunks=CHUNKS)


@pytest.fixture
def slow_layers(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that slows down every layer of a prompt or chunk, and on request of a step."""
    between_layers = engine.decoder.between_layers

    def slow(seconds: float, steps: bool = False) -> None:
        def between() -> None:
            time.sleep(seconds if steps or not engine._runtime._stepping else 0)
            between_layers()

        monkeypatch.setattr(engine.decoder, "between_layers", between)

    return slow


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[weakref.WeakSet[KVBuffer]]:
    """The KV buffers in memory. The garbage collector is off, because cycles would hold them as well."""
    alive: weakref.WeakSet[KVBuffer] = weakref.WeakSet()
    create = KVBuffer.__init__

    def create_and_watch(buffer: KVBuffer, *arguments: int, **options: int) -> None:
        create(buffer, *arguments, **options)
        alive.add(buffer)

    monkeypatch.setattr(KVBuffer, "__init__", create_and_watch)
    gc.disable()
    yield alive
    gc.enable()


def wait_until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.002)
    return holds()


# -- the same answers ----------------------------------------------------------------------------


GREEDY: dict[str, Any] = {}
SAMPLED = {"temperature": 1.2, "top_p": 0.9, "seed": 3}
REFRESHED = tiny.method("scout", sequence_ratio=0.3, refresh_tokens=3)
REVISED = tiny.method("scout", sequence_ratio=0.3, refresh_tokens=3, revise_tokens=5)


@pytest.mark.parametrize(
    ("family", "method", "sampling"),
    [
        *(("llama", tiny.method(name), GREEDY) for name in method_classes()),
        *((name, tiny.method(), GREEDY) for name in ("qwen3", "phi3-partial-rope", "granite", *tiny.WINDOWED)),
        ("llama", tiny.method(), SAMPLED),
        ("llama", REFRESHED, SAMPLED),
        ("llama", REVISED, SAMPLED),
    ],
)
def test_batched_equals_alone(
    make_engine: MakeEngine, family: str, method: PrefillMethod, sampling: dict[str, Any]
) -> None:
    engine = make_engine(family, chunks=CHUNKS)
    options: dict[str, Any] = {"method": method, "max_new_tokens": 12, **sampling}
    alone = [engine.generate(prompt, **options) for prompt in prompts()]
    batched = together(engine, [{"prompt": prompt} for prompt in prompts()], **options)
    assert [result.token_ids for result in batched] == [result.token_ids for result in alone]
    assert [result.chunks for result in batched] == [result.chunks for result in alone]
    assert len({result.token_ids for result in alone}) > 1, "nothing could have been mixed up"
    assert any(result.metrics.refreshes for result in alone) == (
        isinstance(method, SparsePrefill) and bool(method.refreshes_every(engine.decoder))
    )


# -- turns ---------------------------------------------------------------------------------------


@contextmanager
def in_a_thread(function: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[threading.Thread]:
    """Run a call in a thread, and wait for it at the end."""
    thread = threading.Thread(target=function, args=arguments, kwargs=options, daemon=True)
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("slow_steps", [False, True])
def test_a_running_answer_goes_on_while_a_long_prompt_is_prefilled_but_leaves_it_most_of_the_time(
    engine: SamKVEngine, slow_layers: Callable[..., None], slow_steps: bool
) -> None:
    slow_layers(0.1, steps=slow_steps)
    running = engine.stream(prompts()[0], max_new_tokens=200)
    next(running)
    with in_a_thread(engine.generate, prompts()[1], method="full_prefill", max_new_tokens=1):
        assert wait_until(lambda: bool(engine._runtime._scheduler.prefilling))
        before = len(running._sequence.token_ids)  # type: ignore[union-attr]
    decoded = len(running._sequence.token_ids) - before  # type: ignore[union-attr]
    running.close()
    if slow_steps:  # each as long as the whole prefill
        assert decoded <= 2
    else:
        assert decoded >= engine.decoder.num_layers - 2


def test_a_short_prompt_does_not_wait_for_a_long_one(engine: SamKVEngine, slow_layers: Callable[..., None]) -> None:
    slow_layers(0.05)
    with in_a_thread(engine.generate, tiny.rag_prompt([tiny.text(9, 1200)]), max_new_tokens=1) as long_one:
        assert wait_until(lambda: bool(engine._runtime._scheduler.prefilling))
        engine.generate("What is the tide?", max_new_tokens=1)
        assert long_one.is_alive()


def test_ingestion_makes_way_for_questions(engine: SamKVEngine, slow_layers: Callable[..., None]) -> None:
    slow_layers(0.05)
    new = [tiny.text(100 + seed, 600) for seed in range(4)]
    with in_a_thread(engine.add_chunks, new) as ingestion:
        time.sleep(0.02)
        engine.generate("What is the tide?", max_new_tokens=1)
        assert ingestion.is_alive()
    assert all(map(engine.has_chunk, new))


# -- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "forgotten"])
def test_a_stream_that_is_closed_computes_nothing_more(engine: SamKVEngine, is_closed: bool) -> None:
    stream = engine.stream(prompts()[0], max_new_tokens=3000)
    next(stream)
    sequence = stream._sequence
    assert sequence is not None
    if is_closed:
        with stream:
            pass
    else:
        del stream
        gc.collect()
    assert wait_until(lambda: not engine._runtime._scheduler.running)
    decoded = len(sequence.token_ids)
    time.sleep(0.05)
    assert len(sequence.token_ids) == decoded < 3000
    assert sequence.state is None, "its KV is still held"


def test_a_stream_that_was_never_read_costs_nothing(engine: SamKVEngine) -> None:
    stream = engine.stream(prompts()[0])
    assert engine._runtime._scheduler.num_waiting == 0
    stream.close()
    assert list(stream) == []


def test_a_cancelled_prompt_computes_no_more_of_its_chunks(
    engine: SamKVEngine, slow_layers: Callable[..., None]
) -> None:
    slow_layers(0.02)
    new = [tiny.text(seed, 300) for seed in range(500, 512)]
    engine.announce(new)
    stream = engine.stream(tiny.rag_prompt(new), max_new_tokens=5)
    reader = threading.Thread(target=lambda: list(stream))
    reader.start()
    assert wait_until(lambda: engine._runtime._scheduler.num_waiting == 1)
    stream.close()
    reader.join(10)
    assert wait_until(lambda: engine._runtime._scheduler.num_waiting == 0)
    assert sum(map(engine.has_chunk, new)) < len(new)


@pytest.mark.parametrize("method", method_classes())
def test_the_kv_of_an_answer_is_gone_when_its_reader_goes_on(
    engine: SamKVEngine, method: str, buffers: weakref.WeakSet[KVBuffer]
) -> None:
    for prompt in prompts():
        engine.generate(prompt, max_new_tokens=2, method=tiny.method(method))
        assert not buffers


def test_the_kv_of_an_answer_that_failed_is_gone_when_its_error_is(
    engine: SamKVEngine, buffers: weakref.WeakSet[KVBuffer]
) -> None:
    with suppress(ZeroDivisionError):
        engine.generate(prompts()[0], choose=lambda logits: 1 // 0)
    assert wait_until(lambda: not buffers)


def test_the_kv_of_an_answer_whose_refresh_failed_is_gone(
    engine: SamKVEngine,
    buffers: weakref.WeakSet[KVBuffer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Refresher, "_take_cached", lambda *_: 1 // 0)
    engine.generate(prompts()[0], max_new_tokens=4, method=REFRESHED)
    assert "a refresh failed" in caplog.text
    assert not buffers


def test_a_prefill_is_given_up_between_two_layers(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    between_layers, reached, go = engine.decoder.between_layers, threading.Semaphore(0), threading.Event()

    def between() -> None:
        reached.release()
        assert go.wait(10)
        between_layers()

    monkeypatch.setattr(engine.decoder, "between_layers", between)
    stream = engine.stream(prompts()[0], method="full_prefill")
    with in_a_thread(list, stream) as reader:
        assert reached.acquire(timeout=10)
        stream.close()
        go.set()
        assert wait_until(lambda: not engine._runtime._scheduler.prefilling)
        assert not reached.acquire(blocking=False), "another layer ran"
        assert wait_until(lambda: not reader.is_alive())


async def test_a_task_that_reads_ends_when_another_closes_the_stream(engine: SamKVEngine) -> None:
    stream = engine.astream(prompts()[0], max_new_tokens=3000)

    async def read() -> int:
        return sum([1 async for _ in stream])

    reading = asyncio.create_task(read())
    while not engine._runtime._scheduler.running:
        await asyncio.sleep(0.002)
    await stream.aclose()
    assert await asyncio.wait_for(reading, 30) < 3000


def test_a_worker_that_cannot_start_fails_its_request_alone(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wait_until(lambda: engine._runtime._thread is None)  # idle
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "samkv-worker":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="can't start"):
            engine.generate(prompts()[0], max_new_tokens=1)
        with pytest.raises(RuntimeError, match="can't start"):
            engine._runtime.call(lambda: None)
    assert engine.generate(prompts()[0], max_new_tokens=2).token_ids


async def test_a_cancelled_task_stops_the_computation(engine: SamKVEngine) -> None:
    task = asyncio.create_task(engine.agenerate(prompts()[0], max_new_tokens=3000))
    while not engine._runtime._scheduler.running:
        await asyncio.sleep(0.002)
    (sequence,) = engine._runtime._scheduler.running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    while engine._runtime._scheduler.running:
        await asyncio.sleep(0.002)
    assert len(sequence.token_ids) < 3000


async def test_the_event_loop_stays_free(engine: SamKVEngine, slow_layers: Callable[..., None]) -> None:
    slow_layers(0.05)
    ticks = 0

    answering = asyncio.create_task(engine.agenerate(prompts()[0], max_new_tokens=2))
    while not answering.done():
        ticks += 1
        await asyncio.sleep(0.001)
    assert ticks > 50


async def test_an_async_stream_has_pieces_and_a_result(engine: SamKVEngine) -> None:
    expected = engine.generate(prompts()[0], max_new_tokens=12)
    stream = engine.astream(prompts()[0], max_new_tokens=12)
    with pytest.raises(ConfigurationError, match="read the stream to its end"):
        _ = stream.result
    text = "".join([piece.text async for piece in stream])
    assert (text, stream.result.token_ids) == (expected.text, expected.token_ids)


def test_errors_reach_only_their_own_request(engine: SamKVEngine) -> None:
    running = engine.stream(prompts()[0], max_new_tokens=20)
    next(running)
    with pytest.raises(PromptTooLongError, match=r"has \d+ tokens, .* window is 4096 .*retrieve fewer or smaller"):
        engine.generate(tiny.text(5, num_words=9000))
    new = [tiny.text(seed, num_words=600) for seed in range(20, 30)]
    engine.announce(new)
    with pytest.raises(PromptTooLongError, match=r"has \d+ tokens"):
        engine.generate(tiny.rag_prompt(new))
    assert not engine.store.contains(engine._library._keys(new)), "computed in vain"

    class Broken(FullPrefill):
        def prefill(self, context: PrefillContext) -> Prefilled:
            raise MemoryError("no memory")

    with pytest.raises(MemoryError, match="no memory"):
        engine.generate(prompts()[1], method=Broken())
    assert list(running)
    assert running.result.metrics.completion_tokens == 20


@pytest.mark.parametrize("wrong", [10**6, -1, None, 1.0])
def test_a_wrong_choice_fails_only_its_own_request(engine: SamKVEngine, wrong: Any) -> None:
    running = engine.stream(prompts()[0], max_new_tokens=20)
    next(running)
    with pytest.raises(ConfigurationError, match=f"choose returned {wrong}; it must be a token id, below 512"):
        engine.generate(prompts()[1], max_new_tokens=5, choose=lambda logits: wrong)
    assert list(running)
    assert running.result.metrics.completion_tokens == 20


def test_a_full_queue_refuses_at_once(make_engine: MakeEngine) -> None:
    engine = make_engine()
    runtime = engine._runtime
    runtime._scheduler.max_waiting = 2
    hold = threading.Event()
    runtime._read_prompt = lambda sequence: hold.wait(10) and engine._read(sequence)  # type: ignore[assignment, return-value]
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(engine.generate, "What?", max_new_tokens=1) for _ in range(2)]
        assert wait_until(lambda: runtime._scheduler.num_waiting == 2)
        refused = engine.stream("What?")
        with pytest.raises(QueueFullError, match="2 requests are waiting, the limit is 2; try again later"):
            next(refused)
        assert list(refused) == []
        assert runtime._scheduler.num_waiting == 2, "it was refused after others had finished"
        hold.set()
        for request in waiting:
            request.result(10)
    assert engine.generate("What?", max_new_tokens=1).metrics.completion_tokens <= 1


def test_cancelled_requests_leave_their_place_in_the_queue(engine: SamKVEngine) -> None:
    scheduler = engine._runtime._scheduler
    scheduler.max_running, scheduler.max_waiting = 1, 2
    running = engine.stream(prompts()[0], max_new_tokens=3000)
    next(running)
    first, second, third = (engine.stream(prompt, max_new_tokens=1) for prompt in prompts()[1:4])
    for stream in (first, second):
        stream._begin(stream._inbox.put)
    assert wait_until(lambda: len(scheduler.ready) == 2)
    second.close()
    third._begin(third._inbox.put)
    running.close()
    assert len(list(first)) == len(list(third)) == 1


def test_the_thread_ends_when_there_is_nothing_to_do_and_comes_back(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samkv_rag.runtime.worker._IDLE_S", 0.05)
    engine.generate(prompts()[0], max_new_tokens=1)
    assert wait_until(lambda: engine._runtime._thread is None)
    assert engine.generate(prompts()[0], max_new_tokens=1).token_ids


def test_a_closed_engine_says_so(make_engine: MakeEngine) -> None:
    engine = make_engine(chunks=CHUNKS)
    stream = engine.stream(prompts()[0], max_new_tokens=3000)
    next(stream)
    engine.close()
    with pytest.raises(EngineClosedError, match="closed before the answer was finished"):
        list(stream)
    with pytest.raises(EngineClosedError, match="the engine is closed; open another"):
        engine.generate("What?")


@pytest.mark.parametrize("num_failures", [1, 3])
def test_a_prompt_whose_chunk_is_lost_while_it_is_read_is_read_again(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch, num_failures: int
) -> None:
    expected = engine.generate(prompts()[0], max_new_tokens=4)
    runtime, read = engine._runtime, engine._runtime._read_prompt

    def read_late(sequence: Sequence) -> ReadPrompt:
        if sequence.num_readings <= num_failures:
            raise DamagedChunkError("as if it were evicted")
        return read(sequence)

    monkeypatch.setattr(runtime, "_read_prompt", read_late)
    if num_failures == 1:
        assert engine.generate(prompts()[0], max_new_tokens=4).token_ids == expected.token_ids
    else:
        with pytest.raises(DamagedChunkError, match="as if it were evicted"):
            engine.generate(prompts()[0], max_new_tokens=4)
    assert not runtime._scheduler.reading


def test_closing_ends_a_prompt_that_is_read_again(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, read = engine._runtime, engine._runtime._read_prompt
    is_read_again, hold = threading.Event(), threading.Event()

    def read_slowly(sequence: Sequence) -> ReadPrompt:
        found = read(sequence)
        if sequence.num_readings > 1:
            is_read_again.set()
            hold.wait(10)
        return found

    def find_damage(sequence: Sequence) -> list[Sequence]:
        raise DamagedChunkError("as if it were damaged")

    monkeypatch.setattr(runtime, "_read_prompt", read_slowly)
    monkeypatch.setattr(runtime, "_prefill_sequence", find_damage)
    stream = engine.stream(prompts()[0])
    stream._begin(stream._inbox.put)
    assert is_read_again.wait(10)
    engine.close()
    hold.set()
    assert wait_until(lambda: not stream._inbox.empty())
    with pytest.raises(EngineClosedError, match="closed before the answer was finished"):
        next(stream)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_answers_while_the_parent_does(engine: SamKVEngine) -> None:
    expected = engine.generate(prompts()[0], max_new_tokens=4).token_ids
    running = engine.stream(prompts()[1], max_new_tokens=500)
    next(running)
    reading, writing = os.pipe()
    held = [one._lock for one in (engine._assembler, engine._assembler.library, engine._assembler.history)]
    with ThreadPoolExecutor(1) as another_thread:
        for lock in held:
            another_thread.submit(lock.__enter__).result()
        child = os.fork()
        if child == 0:
            found = engine.generate(prompts()[0], max_new_tokens=4).token_ids
            os.write(writing, bytes([found == expected]))
            os._exit(0)
        for lock in held:
            another_thread.submit(lock.__exit__).result()
    os.close(writing)
    has_answered, _, _ = select.select([reading], [], [], 30)
    os.kill(child, 9)
    os.waitpid(child, 0)
    running.close()
    assert has_answered and os.read(reading, 1) == b"\x01"


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral-window"])
def test_the_likelihood_of_a_reference_is_that_of_a_direct_forward(make_engine: MakeEngine, family: str) -> None:
    engine = make_engine(family, chunks=CHUNKS)
    prompt, reference = prompts()[0], " the keeper of the north"
    result = engine.generate_scored(prompt, reference, method="full_prefill", max_new_tokens=5)
    prompt_ids = engine._assembler.without_cache(engine._assembler.split(prompt)).token_ids
    reference_ids = torch.tensor(engine.tokenize(reference))
    with torch.inference_mode():
        logits = tiny.model(family)(torch.cat((prompt_ids, reference_ids))[None]).logits[0]
    expected = torch.nn.functional.cross_entropy(logits[len(prompt_ids) - 1 : -1], reference_ids)
    assert result.reference_nll == pytest.approx(float(expected), abs=1e-4)
    assert result.metrics.kv_bytes_resident == result.metrics.kv_bytes_full, "a window's layer holds what it sees"
    assert result.token_ids == engine.generate(prompt, method="full_prefill", max_new_tokens=5).token_ids


@pytest.mark.parametrize("method", [tiny.method(), REFRESHED, REVISED], ids=tiny.method_id)
def test_the_likelihood_of_a_reference_is_that_of_decoding_it(engine: SamKVEngine, method: PrefillMethod) -> None:
    prompt, reference = prompts()[0], " the keeper of the north who wrote in winter"
    ids = iter(engine.tokenize(reference))
    log_probs = []

    def forced(logits: torch.Tensor) -> int:
        token_id = next(ids)
        log_probs.append(float(logits.log_softmax(-1)[0, token_id]))
        return token_id

    num_tokens = len(engine.tokenize(reference))
    assert num_tokens > 7
    engine.generate(prompt, method=method, max_new_tokens=num_tokens, choose=forced)
    result = engine.generate_scored(prompt, reference, method=method, max_new_tokens=1)
    assert result.reference_nll == pytest.approx(-sum(log_probs) / num_tokens, abs=1e-4)
