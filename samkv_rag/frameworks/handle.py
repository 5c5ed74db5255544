"""The engine of an integration's components: loaded on first use, shared, never copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from samkv_rag.exceptions import ConfigurationError
from samkv_rag.forking import ProcessLock

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine


class EngineHandle:
    """One engine, loaded by the first thread that needs it.

    Frameworks pickle components for worker processes, and users deep-copy them. A handle refuses to be pickled,
    because that would write out a whole model. A deep copy shares the engine.
    """

    def __init__(self, load: Callable[[], SamKVEngine], origin: object = None) -> None:
        self.origin = origin
        """The options of ``load``, by which another component checks whether it may share this engine."""
        self.given: SamKVEngine | None = None
        """The engine, if it was made elsewhere."""
        self.loaded: SamKVEngine | None = None
        """The engine, if it is loaded."""
        self._load = load
        self._lock = ProcessLock()

    @classmethod
    def of(cls, engine: SamKVEngine, origin: object = None) -> EngineHandle:
        handle = cls(lambda: engine, origin)
        handle.loaded = handle.given = engine
        return handle

    def get(self) -> SamKVEngine:
        with self._lock:
            if self.loaded is None:
                self.loaded = self._load()
            return self.loaded

    def __deepcopy__(self, memo: dict[int, Any]) -> EngineHandle:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a SamKV engine stays in its process")


def resolve_handle(llm: object, engine: SamKVEngine | None, llm_name: str) -> EngineHandle:
    """Return the handle of ``llm`` or ``engine``, exactly one of which must be given.

    ``llm`` is anything with an ``engine_handle``; ``llm_name`` is its name in the framework.
    """
    if (llm is None) == (engine is None):
        raise ConfigurationError(f"give exactly one of llm={llm_name}(...) and engine=SamKVEngine")
    if engine is not None:
        return EngineHandle.of(engine)
    handle = getattr(llm, "engine_handle", None)
    if not isinstance(handle, EngineHandle):
        raise ConfigurationError(f"llm is a {type(llm).__name__}; it must be a {llm_name}")
    return handle
