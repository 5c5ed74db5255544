"""One token for every running sequence, in one batch."""

from __future__ import annotations

import logging
import time
from collections import abc

import torch

from samkv_rag.model.attention import Attend, LayerSpec
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.runtime.sequence import Sequence

logger = logging.getLogger(__name__)


def step(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> None:
    """Run each sequence's last token and accept the next one.

    Everything but attention runs as one batch ``[sequences, 1, hidden]``, so the weights are read once for all
    sequences. Caches have different lengths, and gaps in their positions.
    """
    token_ids, position_ids = _last_tokens(sequences)
    buffers = [sequence.state.buffer for sequence in sequences if sequence.state is not None]
    attend = RowByRow([CausalPass(*row) for row in zip(buffers, position_ids, strict=True)])
    logits = decoder.logits(decoder.run_layers(decoder.embed(token_ids), position_ids, attend))[:, -1]
    for row, sequence in enumerate(sequences):
        try:
            sequence.accept(logits[row : row + 1])
        except Exception as error:  # its grammar took too much work, or its ``choose`` failed; the others go on
            sequence.fail(error)


def refresh(decoder: Decoder, sequences: abc.Sequence[Sequence]) -> None:
    """Let each sequence's last token run ahead and select again what the sequence retains."""
    started = time.perf_counter()
    token_ids, position_ids = _last_tokens(sequences)
    refreshers = [one.state.refresher for one in sequences if one.state is not None and one.state.refresher is not None]
    layers = range(max(refresher.layers[-1] for refresher in refreshers) + 1)
    decoder.run_layers(decoder.embed(token_ids), position_ids, RowByRow([r.attend for r in refreshers]), layers)
    ahead_s = time.perf_counter() - started
    for sequence, refresher in zip(sequences, refreshers, strict=True):
        try:
            refresher.refresh(len(sequence.text), ahead_s)
        except Exception as error:  # a chunk cannot be read again, say; the answer goes on with what is retained
            logger.warning("a refresh failed (%s); its answer is not refreshed any more", error)
            refresher.stop()


def _last_tokens(sequences: abc.Sequence[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sequences' last tokens and their positions, each ``[sequences, 1]``."""
    token_ids = torch.tensor([[sequence.token_ids[-1]] for sequence in sequences])
    return token_ids, torch.tensor([[sequence.next_position_id] for sequence in sequences])


class RowByRow:
    """Attention of one token per row of a batch, each by a function of its own."""

    def __init__(self, attends: abc.Sequence[Attend]) -> None:
        self._attends = attends

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        rows = zip(self._attends, torch.split(query, 1), torch.split(key, 1), torch.split(value, 1), strict=True)
        return torch.cat([attend(layer, q, k, v, spec) for attend, q, k, v in rows])
