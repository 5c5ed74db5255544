"""One token for every running sequence, in one batch."""

from __future__ import annotations

from collections import abc

import torch

from samkv_rag.model.attention import Attend, LayerSpec
from samkv_rag.model.decoder import CausalPass, Decoder, Rows
from samkv_rag.runtime.sequence import Sequence


def step(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> None:
    """Run each sequence's last token, with what a refresh adds, and accept the next one.

    Everything but attention runs as one batch of rows, ``[1, rows, hidden]``, so the weights are read once for all
    sequences. Caches have different lengths, and gaps in their positions.
    """
    rows = [_rows(sequence) for sequence in sequences]
    token_ids = torch.cat([one.token_ids for one in rows])
    position_ids = torch.cat([one.position_ids for one in rows])
    last = torch.tensor([len(one.token_ids) for one in rows]).cumsum(0) - 1
    hidden = decoder.run_layers(decoder.embed(token_ids[None]), position_ids, side_by_side(rows))
    logits = decoder.logits(hidden[:, last.to(hidden.device)])[0]
    for row, sequence in enumerate(sequences):
        try:
            sequence.accept(logits[row : row + 1])
        except Exception as error:  # its grammar took too much work, or its ``choose`` failed; the others go on
            sequence.fail(error)


def _rows(sequence: Sequence) -> Rows:
    """Return what runs for a sequence."""
    assert sequence.state is not None
    if refresher := sequence.state.refresher:
        return refresher.rows(torch.tensor(sequence.token_ids), 1, len(sequence.text))
    position_ids = torch.tensor([sequence.next_position_id])
    return Rows(torch.tensor(sequence.token_ids[-1:]), position_ids, CausalPass(sequence.state.buffer, position_ids))


def side_by_side(rows: abc.Sequence[Rows]) -> Attend:
    """Return the attention of a pass over all ``rows``, one after the other, each by its own."""
    lengths = [len(one.token_ids) for one in rows]

    def attend(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        parts = zip(rows, *(torch.split(states, lengths, dim=2) for states in (query, key, value)), strict=True)
        return torch.cat([one.attend(layer, q, k, v, spec) for one, q, k, v in parts], dim=2)

    return attend
