"""Computes chunk caches: each chunk alone after the same preamble, many in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from samkv_rag.chunk_cache import ChunkCache, Summary, SummarySpec
from samkv_rag.model.attention import LayerSpec, Visibility, causal_attention
from samkv_rag.model.decoder import Decoder


@torch.inference_mode()
def encode(
    decoder: Decoder, chunks: Sequence[Sequence[int]], spec: SummarySpec, preamble: ChunkCache | None = None
) -> list[ChunkCache]:
    """Compute the caches of ``chunks`` (token ids), each right after ``preamble``, in one right-padded batch.

    Right padding needs no mask, because under causal attention no token sees the padding after it.
    """
    lengths = [len(ids) for ids in chunks]
    token_ids = pad_sequence([torch.tensor(ids) for ids in chunks], batch_first=True)
    recorder = _Recorder(_local_weights(lengths, spec).to(decoder.device), preamble)
    decoder.run_layers(decoder.embed(token_ids), recorder.positions, recorder)
    return [recorder.cache(row, token_ids[row, :length], spec) for row, length in enumerate(lengths)]


def encode_beginning(decoder: Decoder, token_ids: Sequence[int]) -> ChunkCache:
    """Compute the cache of a prompt's beginning or of a preamble, whose summary is not used."""
    (cache,) = encode(decoder, [token_ids], SummarySpec(0, 1, len(token_ids)))
    return cache


class _Recorder:
    """Causal attention that records keys, values and the mean query of the local tokens."""

    def __init__(self, local_weights: torch.Tensor, preamble: ChunkCache | None) -> None:
        self._local_weights = local_weights  # [batch, tokens]
        self._preamble = preamble
        seen = torch.arange((preamble.num_tokens if preamble else 0) + local_weights.shape[1])
        self.positions = seen[-local_weights.shape[1] :]
        self._visibility = Visibility(self.positions, seen)
        self._keys: list[torch.Tensor] = []  # a layer: [batch, kv_heads, tokens, head_dim]
        self._values: list[torch.Tensor] = []
        self._mean_queries: list[torch.Tensor] = []  # a layer: [batch, heads, head_dim]

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        self._keys.append(key)
        self._values.append(value)
        mean = torch.einsum("bhtd,bt->bhd", query.float(), self._local_weights)
        self._mean_queries.append(mean.to(query.dtype))
        if self._preamble is not None:
            before = (states.to(key).expand(len(key), -1, -1, -1) for states in self._preamble.layer(layer))
            key, value = (torch.cat(pair, dim=2) for pair in zip(before, (key, value), strict=True))
        return causal_attention(query, key, value, spec, self._visibility)

    def cache(self, row: int, token_ids: torch.Tensor, spec: SummarySpec) -> ChunkCache:
        """Copy one chunk's cache out of the batch."""
        length = token_ids.shape[0]
        keys = torch.stack([key[row, :, :length] for key in self._keys]).cpu()
        values = torch.stack([value[row, :, :length] for value in self._values]).cpu()
        query = torch.stack([mean[row] for mean in self._mean_queries]).cpu()
        summary = Summary(_block_means(keys, spec), _anchor_mean(keys, spec), query)
        return ChunkCache(token_ids.clone(), keys, values, summary)


def _local_weights(lengths: Sequence[int], spec: SummarySpec) -> torch.Tensor:
    """Return ``[batch, tokens]``: 1/n at each chunk's last n local tokens, else 0."""
    positions = torch.arange(max(lengths))
    ends = torch.tensor(lengths)[:, None]
    local = (positions >= ends - spec.local_tokens) & (positions < ends)
    return local.float() / local.sum(dim=1, keepdim=True)


def _block_means(keys: torch.Tensor, spec: SummarySpec) -> torch.Tensor:
    """Return the mean key of every block, ``[layers, kv_heads, blocks, head_dim]``."""
    first, last = spec.middle(keys.shape[2])
    blocks = [block.float().mean(dim=2) for block in torch.split(keys[:, :, first:last], spec.block_tokens, dim=2)]
    empty = keys.new_empty(*keys.shape[:2], 0, keys.shape[3])
    return torch.stack(blocks, dim=2).to(keys.dtype) if last > first else empty


def _anchor_mean(keys: torch.Tensor, spec: SummarySpec) -> torch.Tensor:
    """Return the mean key of the initial and local tokens, ``[layers, kv_heads, head_dim]``."""
    first, last = spec.middle(keys.shape[2])
    anchors = torch.cat((keys[:, :, :first], keys[:, :, last:]), dim=2)
    return anchors.float().mean(dim=2).to(keys.dtype)
