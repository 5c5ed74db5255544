"""One token for every running sequence, in one batch."""

from __future__ import annotations

from collections import abc

import torch

from samkv_rag.model.attention import Attend, LayerSpec
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.runtime.sequence import Sequence


def step(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> None:
    """Run each sequence's last token and accept the next one.

    Everything but attention runs as one batch ``[sequences, 1, hidden]``, so the weights are read once for all
    sequences. Caches have different lengths, and gaps in their positions. A sequence that revises tokens runs alone.
    """
    alone = [sequence for sequence in sequences if _num_rows(sequence) > 1]
    for batch in ([one for one in sequences if one not in alone], *([one] for one in alone)):
        if batch:
            _run(decoder, batch, _num_rows(batch[0]))


def _run(decoder: Decoder, sequences: abc.Sequence[Sequence], num_rows: int) -> None:
    token_ids = torch.tensor([sequence.token_ids[-num_rows:] for sequence in sequences])
    positions = [sequence.next_position_id for sequence in sequences]
    position_ids = torch.tensor([list(range(position + 1 - num_rows, position + 1)) for position in positions])
    attend = RowByRow([_attend(*row) for row in zip(sequences, position_ids, strict=True)])
    logits = decoder.logits(decoder.run_layers(decoder.embed(token_ids), position_ids, attend)[:, -1:])[:, -1]
    for row, sequence in enumerate(sequences):
        try:
            sequence.accept(logits[row : row + 1])
        except Exception as error:  # its grammar took too much work, or its ``choose`` failed; the others go on
            sequence.fail(error)


def _attend(sequence: Sequence, position_ids: torch.Tensor) -> Attend:
    """Return the attention of a sequence's last tokens, at ``position_ids`` ``[rows]``."""
    assert sequence.state is not None
    refresher = sequence.state.refresher
    if refresher is not None and refresher.is_due(len(sequence.token_ids)):
        return refresher.attend(position_ids, len(sequence.text))
    return CausalPass(sequence.state.buffer, position_ids)


def _num_rows(sequence: Sequence) -> int:
    refresher = sequence.state and sequence.state.refresher
    return refresher.num_rows(len(sequence.token_ids)) if refresher else 1


class RowByRow:
    """Attention of a batch, each row by a function of its own."""

    def __init__(self, attends: abc.Sequence[Attend]) -> None:
        self._attends = attends

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        rows = zip(self._attends, torch.split(query, 1), torch.split(key, 1), torch.split(value, 1), strict=True)
        return torch.cat([attend(layer, q, k, v, spec) for attend, q, k, v in rows])
