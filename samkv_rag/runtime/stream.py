"""Pieces of an answer as they are written, for readers in threads and in event loops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from queue import SimpleQueue

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.generation_result import GenerationResult
from samkv_rag.results import Piece
from samkv_rag.runtime.sequence import Delivery, Sequence


class _Stream:
    """Base of both streams. Reading the first piece starts the computation, closing cancels it."""

    def __init__(self, sequence: Sequence, submit: Callable[[Sequence], None]) -> None:
        self._sequence = sequence
        self._submit = submit
        self._result: GenerationResult | None = None
        self._begun = self._ended = False

    @property
    def result(self) -> GenerationResult:
        """The whole answer with its metrics, once the last piece was read.

        Raises:
            ConfigurationError: the stream has not been read to its end.
        """
        if self._result is None:
            raise ConfigurationError("the answer is not finished; read the stream to its end, then ask for its result")
        return self._result

    def _begin(self, deliver: Callable[[Delivery], None]) -> None:
        if not self._begun:
            self._begun = True
            self._sequence.deliver = deliver
            self._submit(self._sequence)

    def _end(self) -> None:
        self._ended = True
        if self._result is None:
            self._sequence.cancel()
            if self._begun:
                self._sequence.deliver(None)  # another thread or task may wait for the next piece

    def _piece(self, delivery: Delivery, at_end: type[Exception]) -> Piece:
        """Return the piece delivered; at the answer's end raise ``at_end``, or the error that ended it.

        No frame may keep the error: its traceback has the frame, and both would hold the KV until a collection.
        """
        if isinstance(delivery, Piece):
            return delivery
        self._ended = True
        if isinstance(delivery, BaseException):
            try:
                raise delivery
            finally:
                del delivery
        self._result = delivery or self._result
        raise at_end

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            self._end()


class AnswerStream(_Stream, Iterator[Piece], AbstractContextManager["AnswerStream"]):
    """Iterates over the pieces of an answer; after the last one, :attr:`result` is the whole answer.

    The answer is computed at its own pace, even while nobody reads. Closing or dropping the stream ends the
    computation at the next step.
    """

    def __init__(self, sequence: Sequence, submit: Callable[[Sequence], None]) -> None:
        super().__init__(sequence, submit)
        self._inbox: SimpleQueue[Delivery] = SimpleQueue()

    def __next__(self) -> Piece:
        if self._ended:
            raise StopIteration
        return self._piece(self._next_delivery(), StopIteration)

    def _next_delivery(self) -> Delivery:
        try:
            self._begin(self._inbox.put)
            return self._inbox.get()
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """End the computation; may be called any number of times."""
        self._end()

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswerStream(_Stream, AsyncIterator[Piece], AbstractAsyncContextManager["AsyncAnswerStream"]):
    """An :class:`AnswerStream` for an event loop. It never blocks the loop, and waits without a thread."""

    def __init__(self, sequence: Sequence, submit: Callable[[Sequence], None]) -> None:
        super().__init__(sequence, submit)
        self._inbox: asyncio.Queue[Delivery] = asyncio.Queue()

    async def __anext__(self) -> Piece:
        if self._ended:
            raise StopAsyncIteration
        return self._piece(await self._next_delivery(), StopAsyncIteration)

    async def _next_delivery(self) -> Delivery:
        try:
            self._begin(self._deliver_to(asyncio.get_running_loop()))
            return await self._inbox.get()
        except BaseException:  # including cancellation: nobody will read on
            self._end()
            raise

    async def aclose(self) -> None:
        """End the computation; may be called any number of times."""
        self._end()

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _deliver_to(self, loop: asyncio.AbstractEventLoop) -> Callable[[Delivery], None]:
        inbox = self._inbox  # not self, so that a dropped stream is collected and closed

        def deliver(delivery: Delivery) -> None:
            with suppress(RuntimeError):  # the loop is closed, and its readers with it
                loop.call_soon_threadsafe(inbox.put_nowait, delivery)

        return deliver
