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
    sequences. Caches have different lengths, and gaps in their positions.
    """
    token_ids = torch.tensor([[sequence.token_ids[-1]] for sequence in sequences])
    position_ids = torch.tensor([[sequence.next_position_id] for sequence in sequences])
    attend = RowByRow([_attend(*row) for row in zip(sequences, position_ids, strict=True)])
    logits = decoder.logits(decoder.run_layers(decoder.embed(token_ids), position_ids, attend))[:, -1]
    for row, sequence in enumerate(sequences):
        try:
            sequence.accept(logits[row : row + 1])
        except Exception as error:  # its grammar took too much work, or its ``choose`` failed; the others go on
            sequence.fail(error)


def _attend(sequence: Sequence, position_ids: torch.Tensor) -> Attend:
    """Return the attention of a sequence's last token, at ``position_ids`` ``[1]``."""
    assert sequence.state is not None
    attend, refresher = CausalPass(sequence.state.buffer, position_ids), sequence.state.refresher
    is_due = refresher is not None and refresher.is_due(len(sequence.token_ids))
    return refresher.during(attend, len(sequence.text)) if refresher is not None and is_due else attend


class RowByRow:
    """Attention of one token per row of a batch, each by a function of its own."""

    def __init__(self, attends: abc.Sequence[Attend]) -> None:
        self._attends = attends

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        rows = zip(self._attends, torch.split(query, 1), torch.split(key, 1), torch.split(value, 1), strict=True)
        return torch.cat([attend(layer, q, k, v, spec) for attend, q, k, v in rows])
