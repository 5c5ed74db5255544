"""Every error that samkv_rag raises.

    SamKVError (RuntimeError)
    ├── ConfigurationError        an option is unknown or out of range
    ├── ModelError
    │   ├── ModelNotFoundError    nothing loadable at the given name or path
    │   └── UnsupportedModelError its cached keys cannot be moved exactly
    ├── PromptError
    │   ├── EmptyPromptError
    │   ├── PromptTooLongError    past the model's context window
    │   └── ChatTemplateError     messages the model's template refuses
    │       └── ToolsUnsupportedError  a template that takes no tools (also a NotImplementedError)
    ├── ChunkError
    │   ├── EmptyChunkError
    │   └── ChunkTooLongError     past the model's context window
    ├── StoreError
    │   ├── StoreFullError        no room for more; what was stored stays
    │   ├── StoreUnreachableError a remote store gave no answer in time, or an error
    │   ├── StoreFormatError      not a store, or one of another format version
    │   └── DamagedChunkError     a stored chunk cannot be trusted; answering treats it as a miss
    ├── QueueFullError            too many requests are waiting; try again later
    └── EngineClosedError         the engine was closed

They derive from RuntimeError because LlamaIndex swallows ValueError and TypeError into an
"Empty Response". Each message says the value, the limit and the remedy.
"""

from __future__ import annotations


class SamKVError(RuntimeError):
    """Base of every error raised by samkv_rag."""


class ConfigurationError(SamKVError):
    """An option is unknown or out of range."""


class ModelError(SamKVError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """Nothing loadable at the given name or path."""


class UnsupportedModelError(ModelError):
    """The model's cached keys and values cannot be moved and reused exactly."""


class PromptError(SamKVError):
    """The prompt cannot be answered."""


class EmptyPromptError(PromptError):
    """The prompt holds no text."""


class PromptTooLongError(PromptError):
    """Prompt and answer do not fit the model's context window."""


class ChatTemplateError(PromptError):
    """The messages do not fit the model's chat template."""


class ToolsUnsupportedError(ChatTemplateError, NotImplementedError):
    """The model's chat template takes no tools."""


class ChunkError(SamKVError):
    """A chunk cannot be ingested."""


class EmptyChunkError(ChunkError):
    """The chunk holds no text."""


class ChunkTooLongError(ChunkError):
    """The chunk alone does not fit the model's context window."""


class StoreError(SamKVError):
    """The chunk store cannot be used."""


class StoreFullError(StoreError):
    """No room for more; everything stored before is intact."""


class StoreUnreachableError(StoreError):
    """A remote store gave no answer in time, or an error."""


class StoreFormatError(StoreError):
    """The path is not a chunk store, or one of another format version."""


class QueueFullError(SamKVError):
    """Too many requests are waiting."""


class EngineClosedError(SamKVError):
    """The engine was closed."""


class DamagedChunkError(StoreError):
    """A stored chunk is damaged, forged, or another's."""


class DamagedChunkWarning(UserWarning):
    """A stored chunk could not be trusted; it is treated as a miss and computed again."""


class DamagedCatalogWarning(UserWarning):
    """A catalog was damaged; it has been made again from the stored chunks."""


class StoreUnreachableWarning(UserWarning):
    """A remote store gave no answer; its chunks are misses until it does, and computed again."""
