"""Shared by the LlamaIndex tests: an engine that records its calls, and recorders of events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import EngineConfig, Piece, SamKVEngine
from samkv_rag.runtime.stream import AnswerStream
from support import tiny
from support.bag_of_words import BagOfWords


class WatchedEngine(SamKVEngine):
    """Records what it is asked, and holds pieces back while its gate is closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.announced: list[str] = []
        self.threads: set[int] = set()
        self.num_open_streams = 0
        self.gate = threading.Event()
        self.gate.set()

    def announce(self, texts: Iterable[str]) -> Any:
        self.announced += (texts := list(texts))
        return super().announce(texts)

    def stream(self, prompt: Any, **options: Any) -> Any:
        return WatchedStream(self, super().stream(prompt, **options), (prompt, options))


class WatchedStream:
    def __init__(self, engine: WatchedEngine, stream: AnswerStream, call: tuple[Any, dict[str, Any]]) -> None:
        self._engine, self._stream, self._call = engine, stream, call
        self._pieces = self._read()

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def _read(self) -> Iterator[Piece]:
        self._engine.calls.append(self._call)
        self._engine.num_open_streams += 1
        try:
            for piece in self._stream:
                self._engine.threads.add(threading.get_ident())
                self._engine.gate.wait(timeout=2)  # a test that forgets to open it fails instead of hanging
                yield piece
        finally:
            self._engine.num_open_streams -= 1

    @property
    def result(self) -> Any:
        return self._stream.result

    def close(self) -> None:
        with suppress(ValueError):  # it is being read; its reader closes it
            self._pieces.close()  # type: ignore[attr-defined]
        self._stream.close()


class DispatchRecorder(BaseEventHandler):
    """Keeps all instrumentation events, as tracers do."""

    events: list[BaseEvent] = []

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.events.append(event)

    def count(self, *names: str) -> int:
        return sum(type(event).__name__ in names for event in self.events)


@pytest.fixture
def watched() -> WatchedEngine:
    config = EngineConfig(block_tokens=8)
    return WatchedEngine(tiny.model(), tiny.tokenizer(), config=config, method=tiny.method())


@pytest.fixture
def without_template(watched: WatchedEngine, monkeypatch: pytest.MonkeyPatch) -> WatchedEngine:
    monkeypatch.setattr(WatchedEngine, "has_chat_template", False)
    return watched


@pytest.fixture
def llm(watched: WatchedEngine) -> SamKVLLM:
    return SamKVLLM.from_engine(watched, max_tokens=8)


@pytest.fixture
def events(llm: SamKVLLM) -> Callable[[], list[list[Any]]]:
    """A function that returns start and end of every LLM event of ``llm``."""
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm.callback_manager = CallbackManager([debug])
    return debug.get_llm_inputs_outputs


@pytest.fixture
def dispatched() -> Iterator[DispatchRecorder]:
    root, recorder = get_dispatcher(), DispatchRecorder(events=[])
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers.remove(recorder)


@pytest.fixture(autouse=True)
def offline_settings() -> Iterator[None]:
    """Keep LlamaIndex from loading its own models and tokenizers; reset the settings after each test."""
    Settings.embed_model = BagOfWords()
    Settings.tokenizer = str.split
    yield
    Settings._llm = Settings._embed_model = Settings._tokenizer = None
    Settings._prompt_helper = Settings._callback_manager = None
