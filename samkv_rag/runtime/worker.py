"""The runtime: one worker thread owns the model and serves all sequences in turn."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import torch

from samkv_rag.exceptions import DamagedChunkError, EngineClosedError
from samkv_rag.forking import start_over_in_forks
from samkv_rag.generation_result import GenerationResult
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.openmp import compute_alone, release_team
from samkv_rag.runtime.scheduler import Scheduler
from samkv_rag.runtime.sequence import ReadPrompt, Sequence
from samkv_rag.runtime.step import step

T = TypeVar("T")
logger = logging.getLogger(__name__)

_IDLE_S = 1.0
"""The thread ends after so long without work; new work starts it again."""
_STOP_S = 10.0
_READING_THREADS = 4
_STEP_EVERY = 4.0
"""During prefills, running answers take a quarter of the time for their steps. So they go on, and new answers soon join
them: a step of many answers takes little longer than one of few."""
_MAX_READINGS = 2


class _CancelledError(BaseException):
    """Unwinds the reading or the prefill of a cancelled sequence, through everything that handles errors."""


class Runtime:
    """Runs sequences: a few threads read prompts, one worker thread runs the model.

    The worker prefills the sequences that are ready, one after another, and decodes all running ones in one batch, a
    token per step. Between two layers of a prefill or an ingestion it makes way for shorter prompts and for a step of
    the running sequences.

    Args:
        read: reads a sequence's prompt, in a thread of its own.
        prefill: fills a sequence's buffer, and returns the answers that decode from it.
        finish: makes the result of a finished sequence.
    """

    def __init__(
        self,
        decoder: Decoder,
        read: Callable[[Sequence], ReadPrompt],
        prefill: Callable[[Sequence], list[Sequence]],
        finish: Callable[[Sequence], GenerationResult],
        max_running: int,
        max_waiting: int,
    ) -> None:
        self._decoder = decoder
        self._read_prompt = read
        self._prefill_sequence = prefill
        self._finish = finish
        self._limits = (max_running, max_waiting)
        self._closed = False
        self._thread: threading.Thread | None
        self.start_over()
        decoder.between_layers = self._make_way
        start_over_in_forks(self)
        _open_runtimes().add(self)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; its ``deliver`` gets the answer."""
        release_team()
        with self._changed:
            self._require_open()
            self._scheduler.admit(sequence)
            sequence.submitted_at = time.perf_counter()
            try:
                self._readers.submit(self._read, sequence)
            except RuntimeError:  # no thread can be started
                self._scheduler.reading.discard(sequence)
                raise

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` on the worker thread, which owns the model, and return its result."""
        if threading.current_thread() is self._thread:
            return function()
        if (reading := getattr(self._in_thread, "reading", None)) and reading.cancelled:
            raise _CancelledError
        release_team()
        future: Future[T] = Future()
        with self._changed:
            self._require_open()
            self._wake()
            self._jobs.append((function, future))
        return future.result()

    def close(self) -> None:
        """Cancel all sequences and end the threads."""
        _open_runtimes().discard(self)
        with self._changed:
            self._closed = True
            error = EngineClosedError("the engine was closed before the answer was finished")
            for sequence in self._scheduler.drain():
                sequence.fail(error)
            while self._jobs:
                self._jobs.popleft()[1].set_exception(error)
            self._changed.notify_all()
            thread = self._thread
        self._readers.shutdown(wait=False, cancel_futures=True)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_S)

    # In a reading thread

    def _read(self, sequence: Sequence) -> None:
        try:
            if not sequence.cancelled:
                sequence.num_readings += 1
                self._in_thread.reading = sequence
                with torch.inference_mode():
                    sequence.read = self._read_prompt(sequence)
            with self._changed:
                self._scheduler.reading.discard(sequence)
                if not sequence.cancelled:
                    self._wake()
                    sequence.ready_at = time.perf_counter()
                    self._scheduler.ready.append(sequence)
        except BaseException as error:
            with self._changed:  # first, so that its place is free when the reader knows
                self._scheduler.reading.discard(sequence)
            if isinstance(error, DamagedChunkError):  # evicted meanwhile, say
                self._read_again(sequence, error)
            else:
                sequence.fail(error)
        finally:
            self._in_thread.reading = None

    # In the worker thread

    def _run(self) -> None:
        with torch.inference_mode():
            while self._wait_for_work():
                self._prefill_next()
                self._run_job()
                self._step()

    def _wait_for_work(self) -> bool:
        with self._changed:
            if not self._has_work():
                release_team()
            self._changed.wait_for(lambda: self._closed or self._has_work(), _IDLE_S)
            if self._has_work():
                return True
            self._thread = None
            return False

    def _has_work(self) -> bool:
        return bool(self._jobs or self._scheduler.running or self._scheduler.ready)

    def _prefill_next(self) -> None:
        with self._changed:
            sequence = self._scheduler.next_prefill()
        if sequence is None:
            return
        waited_s = time.perf_counter() - sequence.ready_at
        sequence.clock.phase_s["wait"] = sequence.clock.phase_s.get("wait", 0.0) + waited_s
        try:
            if sequence.cancelled:
                raise _CancelledError
            answers = self._prefill_sequence(sequence)
            with self._changed:
                self._scheduler.running += answers
        except _CancelledError:
            sequence.state = None
        except DamagedChunkError as error:
            self._read_again(sequence, error)
        except BaseException as error:
            sequence.fail(error)
        finally:
            with self._changed:
                self._scheduler.prefilling.remove(sequence)
        self._drop_ended()

    def _read_again(self, sequence: Sequence, error: DamagedChunkError) -> None:
        """Read a prompt again after a chunk proved damaged, which finds and replaces the chunk."""
        is_again = False
        with self._changed:
            if sequence.num_readings <= _MAX_READINGS and not self._closed:
                with suppress(RuntimeError):  # no thread can be started
                    self._readers.submit(self._read, sequence)
                    self._scheduler.reading.add(sequence)  # the limit does not apply
                    is_again = True
        if is_again:
            logger.warning("a chunk could not be read (%s); its prompt is read again", error)
        else:
            sequence.fail(error)

    def _run_job(self) -> None:
        with self._changed:
            if not self._jobs:
                return
            function, future = self._jobs.popleft()
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _step(self) -> None:
        self._drop_ended()
        running = list(self._scheduler.running)
        if not running:
            return
        self._stepping, started = True, time.perf_counter()
        try:
            step(self._decoder, running)
        except BaseException as error:
            for sequence in running:
                sequence.fail(error)
        finally:
            self._stepping = False
        ended = time.perf_counter()
        self._next_step_at = ended + (_STEP_EVERY - 1) * (ended - started)
        self._drop_ended()

    def _drop_ended(self) -> None:
        with self._changed:
            ended = self._scheduler.drop_ended()
        for sequence in ended:
            try:
                result = None if sequence.cancelled else self._finish(sequence)
                sequence.state = None  # frees the KV before the reader goes on, who may keep the sequence
                if result is not None:
                    sequence.conclude(result)
            except BaseException as error:
                sequence.fail(error)

    def _make_way(self) -> None:
        """Between two layers: end what was cancelled, then let shorter prompts and running sequences go on."""
        if threading.current_thread() is not self._thread or self._stepping:
            return
        if self._scheduler.prefilling and self._scheduler.prefilling[-1].cancelled:
            raise _CancelledError
        self._prefill_next()
        if not self._scheduler.prefilling or time.perf_counter() >= self._next_step_at:
            self._step()

    # Start and end

    def _require_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed; open another with SamKVEngine.from_pretrained")

    def _wake(self) -> None:
        """Notify the worker thread of new work, and start it if it is not running."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="samkv-worker", daemon=True)
            thread.start()  # may fail; the thread itself waits for the lock that we hold
            self._thread = thread
        self._changed.notify_all()

    def before_fork(self) -> None:
        """End the forking thread's team, whose threads the child would lack; the next operation starts another."""
        release_team()

    def start_over(self) -> None:
        """Reset everything: at first, and in a forked process, which has none of the parent's threads."""
        self._changed = threading.Condition()
        self._scheduler = Scheduler(*self._limits)
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._thread = None
        # Its threads start with the first prompt.
        self._readers = ThreadPoolExecutor(_READING_THREADS, "samkv-read", compute_alone)
        self._in_thread = threading.local()
        """``reading``: the sequence whose prompt the thread reads."""
        self._stepping = False
        self._next_step_at = 0.0


@cache
def _open_runtimes() -> weakref.WeakSet[Runtime]:
    """Return the open ones, which are closed at exit, or the interpreter would end under a running thread."""
    runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()

    @atexit.register
    def close() -> None:
        for runtime in list(runtimes):
            runtime.close()

    return runtimes
