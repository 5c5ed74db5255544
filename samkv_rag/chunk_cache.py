"""What is stored of a chunk, and the one interface through which a pass reads it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from samkv_rag.config import KVDtype


@dataclass(frozen=True)
class Layout:
    """How a chunk's tokens were summarised at ingestion; all in tokens, ``resume_layer`` a layer."""

    initial_tokens: int
    local_tokens: int
    block_tokens: int
    resume_layer: int = 0

    @classmethod
    def from_json(cls, text: str) -> Layout:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: the text is something else.
        """
        return cls.from_fields(json.loads(text))

    @classmethod
    def from_fields(cls, fields: Any) -> Layout:
        """A layout of what stood in a file or index, which others may have written.

        Raises:
            ValueError: it is something else.
        """
        try:
            layout = cls(**fields)
        except TypeError as error:
            raise ValueError(f"not a layout ({error})") from error
        require_counts(vars(layout).values())
        return layout

    def to_json(self) -> str:
        """One line of JSON, equal for equal layouts."""
        return json.dumps(asdict(self))

    def middle(self, num_tokens: int) -> tuple[int, int]:
        """Token range between the anchors; empty where the anchors cover the chunk."""
        first = min(self.initial_tokens, num_tokens)
        return first, max(first, num_tokens - self.local_tokens)


class ChunkReader(Protocol):
    """Reads a stored chunk piece by piece. Tensors are the caller's own, on any device."""

    @property
    def token_ids(self) -> torch.Tensor:
        """``[tokens]``, int64."""

    @property
    def layout(self) -> Layout:
        """How the means were taken."""

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each ``[kv_heads, tokens, head_dim]``, at positions 0..tokens-1."""

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write what :meth:`layer` returns into ``keys`` and ``values``, on the host and of any strides."""

    def means(self) -> Means:
        """The summaries the paper's selection works on."""

    def resume_hidden(self) -> torch.Tensor:
        """``[tokens, hidden]`` entering ``layout.resume_layer``."""


@dataclass(frozen=True)
class Means:
    """Summaries of a chunk (arXiv 2508.11661, section 3), keys and queries after RoPE at 0..tokens-1."""

    block_mean_keys: torch.Tensor
    """``[layers, kv_heads, blocks, head_dim]``"""
    anchor_mean_key: torch.Tensor
    """``[layers, kv_heads, head_dim]``, over initial and local tokens"""
    local_mean_query: torch.Tensor
    """``[layers, heads, head_dim]``, over the local tokens"""


@dataclass(frozen=True)
class ChunkCache:
    """A chunk's keys and values, computed alone at positions 0..tokens-1, and their summaries."""

    token_ids: torch.Tensor
    """``[tokens]``, int64"""
    keys: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``, after RoPE"""
    values: torch.Tensor
    """``[layers, kv_heads, tokens, head_dim]``"""
    summary: Means
    layout: Layout
    fingerprint: str
    """Model, tokenizer and format that computed it, see ``model.fingerprint``."""
    hidden: torch.Tensor | None = None
    """``[tokens, hidden]`` entering ``layout.resume_layer``, where that is not 0"""
    kv_dtype: KVDtype = "auto"
    """What a store is to keep it in, see :class:`~samkv_rag.SamKVConfig`."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the chunk."""
        return int(self.token_ids.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor held."""
        means = (self.summary.block_mean_keys, self.summary.anchor_mean_key, self.summary.local_mean_query)
        return [self.token_ids, self.keys, self.values, *means, *([] if self.hidden is None else [self.hidden])]

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`ChunkReader`."""
        return self.keys[layer], self.values[layer]

    def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """See :class:`ChunkReader`."""
        keys.copy_(self.keys[layer])
        values.copy_(self.values[layer])

    def means(self) -> Means:
        """See :class:`ChunkReader`."""
        return self.summary

    def resume_hidden(self) -> torch.Tensor:
        """See :class:`ChunkReader`."""
        if self.hidden is None:
            raise LookupError("this chunk was ingested without resume_layer")
        return self.hidden


def chunk_key(fingerprint: str, digest: str) -> str:
    """Store key of a chunk: a hash of who computed it and of its text's digest, never a path."""
    return hashlib.sha256(f"{fingerprint}\n{digest}".encode()).hexdigest()


def require_counts(numbers: Iterable[object]) -> None:
    """Check numbers of tokens or characters that others wrote.

    Raises:
        ValueError: one is no integer from 0 to 2³¹ − 1.
    """
    if wrong := [number for number in numbers if type(number) is not int or not 0 <= number < 2**31]:
        raise ValueError(f"{wrong[0]!r} is no number of tokens or characters")


SummarySpec, Summary = Layout, Means
