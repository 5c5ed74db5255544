"""One token for every running sequence, in one batch."""

from __future__ import annotations

from collections import abc

import torch

from samkv_rag.model.attention import LayerSpec
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.runtime.sequence import Sequence


def step(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> None:
    """Run each sequence's last token and accept the next one.

    Everything but attention runs as one batch ``[sequences, 1, hidden]``, so the weights are read once for all
    sequences. Caches have different lengths, and gaps in their positions.
    """
    token_ids = torch.tensor([[sequence.token_ids[-1]] for sequence in sequences])
    position_ids = torch.tensor([[sequence.next_position_id] for sequence in sequences])
    buffers = [sequence.state.buffer for sequence in sequences if sequence.state is not None]
    hidden = decoder.run_layers(decoder.embed(token_ids), position_ids, DecodePass(buffers, position_ids))
    logits = decoder.logits(hidden)[:, -1]
    for row, sequence in enumerate(sequences):
        try:
            sequence.accept(logits[row : row + 1])
        except Exception as error:  # its grammar took too much work, or its ``choose`` failed; the others go on
            sequence.fail(error)


class DecodePass:
    """Attention of one new token per row, at ``position_ids`` ``[rows, 1]``, which is appended to the row's buffer."""

    def __init__(self, buffers: abc.Sequence[KVBuffer], position_ids: torch.Tensor) -> None:
        self._passes = [CausalPass(buffer, position) for buffer, position in zip(buffers, position_ids, strict=True)]

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        rows = zip(self._passes, torch.split(query, 1), torch.split(key, 1), torch.split(value, 1), strict=True)
        return torch.cat([attend(layer, q, k, v, spec) for attend, q, k, v in rows])
