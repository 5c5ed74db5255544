"""Every error that samkv_rag raises, and its warnings. Each message has the value, the limit and the remedy.

The errors derive from RuntimeError because LlamaIndex turns ValueError and TypeError into an "Empty Response".
"""

from __future__ import annotations


class SamKVError(RuntimeError):
    """Base of every error raised by samkv_rag."""


class ConfigurationError(SamKVError):
    """An option is unknown or out of range."""


class ModelError(SamKVError):
    """The model cannot be used."""


class ModelNotFoundError(ModelError):
    """Nothing can be loaded from the given name or path."""


class UnsupportedModelError(ModelError):
    """The model's cached keys and values cannot be moved and reused exactly."""


class PromptError(SamKVError):
    """The prompt cannot be answered."""


class EmptyPromptError(PromptError):
    """The prompt has no text."""


class PromptTooLongError(PromptError):
    """Prompt and answer do not fit the model's context window."""


class ChatTemplateError(PromptError):
    """The messages do not fit the model's chat template."""


class ToolsUnsupportedError(ChatTemplateError, NotImplementedError):
    """The model's chat template does not support tools."""


class ChunkError(SamKVError):
    """A chunk cannot be ingested."""


class EmptyChunkError(ChunkError):
    """The chunk has no text."""


class ChunkTooLongError(ChunkError):
    """The chunk does not fit the model's context window."""


class StoreError(SamKVError):
    """The chunk store cannot be used."""


class StoreFullError(StoreError):
    """There is no room for more; stored chunks are intact."""


class StoreUnreachableError(StoreError):
    """A remote store did not answer in time, or with an error."""


class StoreFormatError(StoreError):
    """The path is not a chunk store, or a store of another format version."""


class DamagedChunkError(StoreError):
    """A stored chunk is damaged, forged, or belongs to another text or model; it counts as a miss."""


class QueueFullError(SamKVError):
    """Too many requests are waiting; try again later."""


class EngineClosedError(SamKVError):
    """The engine was closed."""


class DamagedChunkWarning(UserWarning):
    """A stored chunk cannot be trusted; it counts as a miss and is computed again."""


class DamagedCatalogWarning(UserWarning):
    """A catalog was damaged and has been rebuilt from the stored chunks."""


class StoreUnreachableWarning(UserWarning):
    """A remote store did not answer; until it does, its chunks are computed again."""
