"""The engine behind the three components: loaded on first use, shared, never copied."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from samkv_rag.exceptions import ConfigurationError

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine


class EngineHandle:
    """One engine, loaded by the first thread that asks for it.

    LlamaIndex pickles components (worker processes) and users deep-copy them. A handle refuses the
    first, since it would write out a whole model, and survives the second as the same engine.
    """

    def __init__(self, load: Callable[[], SamKVEngine]) -> None:
        self._load = load
        self._engine: SamKVEngine | None = None
        self._lock = threading.Lock()

    def get(self) -> SamKVEngine:
        """Return the engine, loading it if need be."""
        with self._lock:
            if self._engine is None:
                self._engine = self._load()
            return self._engine

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineHandle:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SamKV engine stays in its process")


def handle_of(llm: object, engine: SamKVEngine | None) -> EngineHandle:
    """Return the handle to use for ``llm`` or ``engine``, exactly one of which must be given.

    Raises:
        ConfigurationError: both or neither is given, or ``llm`` is not a SamKVLLM.
    """
    if (llm is None) == (engine is None):
        raise ConfigurationError("give exactly one of llm=SamKVLLM(...) and engine=SamKVEngine")
    if engine is not None:
        return EngineHandle(lambda: engine)
    handle = getattr(llm, "engine_handle", None)
    if not isinstance(handle, EngineHandle):
        raise ConfigurationError(f"llm is a {type(llm).__name__}; it must be a SamKVLLM")
    return handle


def chunk_texts(items: Iterable[BaseNode | NodeWithScore | str]) -> list[str]:
    """Return the text of each node as it will stand in a prompt; nodes without text are left out.

    Metadata is left out too: LlamaIndex writes it before the text, so the text alone arrives verbatim.
    """
    texts = (item if isinstance(item, str) else _text(item) for item in items)
    return [text for text in texts if text.strip()]


def _text(item: BaseNode | NodeWithScore) -> str:
    node = item.node if isinstance(item, NodeWithScore) else item
    return node.get_content(metadata_mode=MetadataMode.NONE)
