"""One token for every running sequence, in one batch."""

from __future__ import annotations

from collections import abc

import torch

from samkv_rag.model.decoder import Decoder, Rows, causal_rows, side_by_side
from samkv_rag.runtime.sequence import Sequence


def step(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> None:
    """Run each sequence's last token, with what a refresh adds, and accept the next one.

    Everything but attention runs as one batch of rows, ``[1, rows, hidden]``, so the weights are read once for all
    sequences. Caches have different lengths, and gaps in their positions.
    """
    parts = [_rows(sequence) for sequence in sequences]
    last = torch.tensor([len(part.token_ids) for part in parts]).cumsum(0) - 1
    rows = side_by_side(parts)
    hidden = decoder.run_layers(decoder.embed(rows.token_ids[None]), rows.position_ids, rows.attend)
    logits = decoder.logits(hidden[:, last.to(hidden.device)])[0]
    del parts, rows  # an error's traceback keeps this frame, which must not keep the others' KV
    for row, sequence in enumerate(sequences):
        try:
            sequence.accept(logits[row : row + 1])
        except Exception as error:  # its grammar took too much work, or its ``choose`` failed; the others go on
            sequence.fail(error)


def _rows(sequence: Sequence) -> Rows:
    """Return what runs for a sequence."""
    assert sequence.state is not None
    if refresher := sequence.state.refresher:
        return refresher.rows(sequence.token_ids, 1, len(sequence.text))
    return causal_rows(sequence.state.buffer, sequence.token_ids[-1:], sequence.next_position_id)
