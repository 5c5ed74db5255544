"""What an engine fixes when chunks are ingested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from samkv_rag.checks import require_choice, require_integer

KVDtype = Literal["auto", "bfloat16", "int8"]


@dataclass(frozen=True)
class EngineConfig:
    """What is computed of a chunk at ingestion, and how it is stored.

    Two engines share chunks only if these options are equal (``kv_dtype`` apart). How a prompt is
    answered is not here: that is a method's business, see :mod:`samkv_rag.prefill`.

    Args:
        initial_tokens: a chunk's first tokens, part of its anchors in the ``SamKV`` method's summary.
        local_tokens: a chunk's last tokens, the other part; their mean query speaks for the chunk.
        block_tokens: tokens per block of the summary.
        kv_dtype: what keys and values are stored in: ``"auto"`` (the model's own dtype), ``"bfloat16"``,
            or ``"int8"``, quantised in groups (KIVI, arXiv 2402.02750). All of them can be read.

    Raises:
        ConfigurationError: a value is out of range.
    """

    initial_tokens: int = 4
    local_tokens: int = 4
    block_tokens: int = 16
    kv_dtype: KVDtype = "auto"

    def __post_init__(self) -> None:
        require_integer("initial_tokens", self.initial_tokens, 0)
        require_integer("local_tokens", self.local_tokens, 1)
        require_integer("block_tokens", self.block_tokens, 1)
        require_choice("kv_dtype", self.kv_dtype, get_args(KVDtype))
