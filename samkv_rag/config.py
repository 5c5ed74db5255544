"""What an engine fixes when chunks are ingested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from samkv_rag.checks import require_choice, require_integer
from samkv_rag.exceptions import ConfigurationError

Admit = Literal["always", "second_use"]
KVDtype = Literal["auto", "bfloat16", "float32", "int8"]
Storage = Literal["full", "index"]
"""What is stored of a chunk: everything, or what it takes to select its tokens and recompute them."""


@dataclass(frozen=True)
class EngineConfig:
    """What is computed of a chunk at ingestion, and how it is stored.

    Two engines share chunks only if these options are equal (``kv_dtype`` and ``admit`` apart). How a prompt is
    answered is not here: that is a method's business, see :mod:`samkv_rag.prefill`.

    Args:
        initial_tokens: a chunk's first tokens, part of its anchors in the ``SamKV`` method's summary.
        local_tokens: a chunk's last tokens, the other part; their mean query speaks for the chunk.
        block_tokens: tokens per block of the summary.
        storage: what is stored of a chunk. ``"full"``: all of it. ``"index"``: the keys of the layers by which
            :class:`Scout` selects, the KV of a tenth of the tokens, over which it scouts, and the values by which it
            ranks. It takes an eighth of the bytes; methods that read more are refused.
        kv_dtype: what is stored in which type: ``"bfloat16"``, ``"float32"``, or ``"int8"``, quantised in
            groups (KIVI, arXiv 2402.02750). ``"auto"``: int8 in an index, else the model's own dtype, but
            bfloat16 where that is float32. All of them can be read.
        admit: whether a chunk that a prompt brings and the store lacks is stored ``"always"``, or at its
            ``"second_use"`` by this engine, so that a store of bounded size keeps what is asked for again.
            :meth:`SamKVEngine.add_chunks` stores in any case.
        preamble: text that stands before every chunk while its KV is computed, and is not stored. All tokens attend to
            the first ones that a model sees, whatever these say: they had better not be a chunk's. None: the beginning
            of a user's message by the chat template, or a line of ours. Empty: nothing.

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
