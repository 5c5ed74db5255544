"""Options of an engine that apply when chunks are ingested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from samkv_rag.checks import require_choice, require_integer
from samkv_rag.exceptions import ConfigurationError

Admit = Literal["always", "second_use"]
KVDtype = Literal["auto", "bfloat16", "float32", "int8"]
Storage = Literal["full", "index"]


@dataclass(frozen=True)
class EngineConfig:
    """How chunks are computed and stored.

    Two engines share chunks only if these options are equal, except ``kv_dtype`` and ``admit``. Options of answering
    belong to the method; see :mod:`samkv_rag.prefill`.

    Args:
        initial_tokens: a chunk's first tokens, part of its anchors in the ``SamKV`` method's summary.
        local_tokens: a chunk's last tokens, the other part of the anchors; their mean query represents the chunk.
        block_tokens: tokens per block of the summary.
        storage: ``"full"`` stores the whole chunk. ``"index"`` stores the keys of the layers by which :class:`Scout`
            selects, the KV of the tenth of the tokens that it scouts over, and the values by which it ranks. An index
            takes an eighth of the bytes; methods that read more are refused.
        kv_dtype: the stored type: ``"bfloat16"``, ``"float32"``, or ``"int8"``, quantised in groups (KIVI,
            arXiv 2402.02750). ``"auto"``: int8 in an index, else the model's dtype, with bfloat16 for float32.
            An engine reads chunks of every type.
        admit: when to store a chunk that comes with a prompt and is not stored: ``"always"``, or at its
            ``"second_use"`` by this engine, so that a small store keeps the chunks that are used again.
            :meth:`SamKVEngine.add_chunks` always stores.
        preamble: text before every chunk while its KV is computed; its own KV is not stored. All tokens attend
            strongly to the first tokens that a model sees, so those should not belong to a chunk. None: the beginning
            of a user's message by the chat template, or a built-in line. Empty: no preamble.

    Raises:
        ConfigurationError: a value is out of range.
    """

    initial_tokens: int = 4
    local_tokens: int = 4
    block_tokens: int = 16
    storage: Storage = "full"
    kv_dtype: KVDtype = "auto"
    admit: Admit = "always"
    preamble: str | None = None

    def __post_init__(self) -> None:
        require_integer("initial_tokens", self.initial_tokens, 0)
        require_integer("local_tokens", self.local_tokens, 1)
        require_integer("block_tokens", self.block_tokens, 1)
        require_choice("storage", self.storage, get_args(Storage))
        require_choice("kv_dtype", self.kv_dtype, get_args(KVDtype))
        require_choice("admit", self.admit, get_args(Admit))
        if not isinstance(self.preamble, str | None):
            raise ConfigurationError(f"preamble is {self.preamble!r}; it must be text, or None for the default")
