"""Shared by the LlamaIndex tests: a fake engine, event recorders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.llms.samkv import SamKVLLM

from samkv_rag import EngineConfig, GenerationMetrics, IngestionReport, Piece
from samkv_rag.checks import refuse_unknown
from samkv_rag.prefill import PrefillMethod, Scout
from support.bag_of_words import BagOfWords

Prompt = str | Sequence[Mapping[str, str]]
OPTIONS = ["max_new_tokens", "temperature", "top_p", "stop", "seed", "method"]


@dataclass(frozen=True)
class FakeResult:
    text: str
    finish_reason: str
    metrics: GenerationMetrics


class FakeStream:
    """Pieces from a generator, then a result."""

    def __init__(self, pieces: Generator[Piece, None, FakeResult]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[Piece]:
        self.result = yield from self._pieces

    def close(self) -> None:
        self._pieces.close()


@dataclass
class FakeEngine:
    """An engine without a model: it answers with numbered words and notes what it was asked.

    test_llamaindex_contract.py holds it to what the real engine does.
    """

    has_chat_template: bool = True
    context_window: int = 4096
    model_name: str = "fake/model"
    namespace: str = ""
    config: EngineConfig = field(default_factory=EngineConfig)
    method: PrefillMethod = field(default_factory=lambda: Scout(sequence_ratio=0.5))
    chunks: set[str] = field(default_factory=set)
    references: dict[str, str] = field(default_factory=dict)
    announced: list[str] = field(default_factory=list)
    calls: list[tuple[Prompt, dict[str, Any]]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    num_open_streams: int = 0
    progress: list[bool | None] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """Generation waits for it; set unless a test clears it."""

    def __post_init__(self) -> None:
        self.gate.set()

    def add_chunks(
        self,
        texts: Iterable[str],
        *,
        sources: Sequence[str | None] | None = None,
        show_progress: bool | None = None,
    ) -> IngestionReport:
        self.progress.append(show_progress)
        self.threads.add(threading.get_ident())
        ordered = [text.strip() for text in texts]
        named = zip(sources or [None] * len(ordered), ordered, strict=True)
        references = {source: text for source, text in named if source is not None}
        replaced = {self.references[source] for source in references if source in self.references}
        self.references |= references
        self.chunks -= replaced - set(self.references.values())
        stripped = set(ordered)
        new = stripped - self.chunks
        self.chunks |= new
        return IngestionReport(len(new), len(stripped) - len(new), 0, 0, 0.0)

    def announce(self, texts: Iterable[str]) -> None:
        self.announced.extend(texts)

    def remove_chunks(self, texts: Iterable[str]) -> int:
        gone = self.chunks & {text.strip() for text in texts}
        self.chunks -= gone
        return len(gone)

    def remove_sources(self, sources: Iterable[str], *, keep_texts: Iterable[str] = ()) -> int:
        going = set(sources)
        spare = {text.strip() for text in keep_texts}
        spare -= {text for source, text in self.references.items() if source not in going}
        going = {source for source in going & self.references.keys() if self.references[source] not in spare}
        released = {self.references.pop(source) for source in going}
        return self.remove_chunks(released - set(self.references.values()))

    def sources(self) -> list[str]:
        return list(self.references)

    def prune(self, keep_texts: Iterable[str], *, unreferenced_only: bool = False) -> int:
        keep = {text.strip() for text in keep_texts}
        return self.remove_chunks(self.chunks - keep - set(self.references.values() if unreferenced_only else ()))

    def has_chunk(self, text: str) -> bool:
        return text.strip() in self.chunks

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    def tokenize(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def count_tokens(self, text: str) -> int:
        return len(self.tokenize(text))

    def generate(self, prompt: Prompt, **options: Any) -> FakeResult:
        stream = self.stream(prompt, **options)
        list(stream)
        return stream.result

    def stream(self, prompt: Prompt, **options: Any) -> FakeStream:
        refuse_unknown(options, OPTIONS)
        return FakeStream(self._stream(prompt, options))

    def _stream(self, prompt: Prompt, options: dict[str, Any]) -> Generator[Piece, None, FakeResult]:
        self.calls.append((prompt, options))
        rendered = prompt if isinstance(prompt, str) else self.apply_chat_template(prompt)
        self.num_open_streams += 1
        try:
            words = []
            for number in range(options["max_new_tokens"]):
                self.threads.add(threading.get_ident())
                self.gate.wait(timeout=2)  # a test that forgets it fails instead of hanging
                words.append(f"w{number} ")
                yield Piece(words[-1])
            return FakeResult("".join(words), "length", self._metrics(rendered, options["max_new_tokens"]))
        finally:
            self.num_open_streams -= 1

    def _metrics(self, rendered: str, num_generated: int) -> GenerationMetrics:
        hits = sum(chunk in rendered for chunk in self.chunks)
        unknown = {text.strip() for text in self.announced if text.strip() in rendered} - self.chunks
        self.chunks |= unknown
        figures: dict[str, Any] = dict.fromkeys(GenerationMetrics.__dataclass_fields__, 0)
        figures |= {"method": "scout", "fallback_reason": None, "phase_s": {}, "diagnostics": ()}
        figures |= {"prompt_tokens": self.count_tokens(rendered), "completion_tokens": num_generated}
        return GenerationMetrics(**figures | {"chunks_hit": hits, "chunks_missed": len(unknown)})


class CallbackRecorder(BaseCallbackHandler):
    """Notes the LLM events of a callback manager."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.starts: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def on_event_start(self, event_type: CBEventType, payload: Any = None, event_id: str = "", **_: Any) -> str:  # type: ignore[override]
        if event_type == CBEventType.LLM:
            self.starts.append(payload)
        return event_id

    def on_event_end(self, event_type: CBEventType, payload: Any = None, event_id: str = "", **_: Any) -> None:  # type: ignore[override]
        if event_type == CBEventType.LLM:
            self.ends.append(payload)

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


class DispatchRecorder(BaseEventHandler):
    """Notes the names of all instrumentation events, and keeps the events alive, as tracers do."""

    events: list[BaseEvent] = []

    def handle(self, event: BaseEvent, **_: Any) -> None:
        self.events.append(event)

    def count(self, *names: str) -> int:
        return sum(type(event).__name__ in names for event in self.events)


@pytest.fixture
def fake_engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def make_fake_engine() -> Callable[..., FakeEngine]:
    return FakeEngine


@pytest.fixture
def fake_llm(fake_engine: FakeEngine) -> SamKVLLM:
    return SamKVLLM.from_engine(fake_engine, max_tokens=3)  # type: ignore[arg-type]


@pytest.fixture
def callbacks() -> CallbackRecorder:
    return CallbackRecorder()


@pytest.fixture
def callback_manager(callbacks: CallbackRecorder) -> CallbackManager:
    return CallbackManager([callbacks])


@pytest.fixture
def dispatched() -> Iterator[DispatchRecorder]:
    root, recorder = get_dispatcher(), DispatchRecorder(events=[])
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers.remove(recorder)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small lose more to handing work between threads than they gain: minutes, on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def offline_settings() -> Iterator[None]:
    """Keep LlamaIndex from loading models and tokenizers of its own; leave no trace for other tests."""
    Settings.embed_model = BagOfWords()
    Settings.tokenizer = str.split
    yield
    Settings._llm = Settings._embed_model = Settings._tokenizer = None
    Settings._prompt_helper = Settings._callback_manager = None
