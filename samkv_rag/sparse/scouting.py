"""Scouting: the question reads the whole cached KV, layer by layer, and points at what it needs.

Ours. The paper compares mean keys instead; on small models that points elsewhere.
"""

from __future__ import annotations

import torch

from samkv_rag.config import SamKVConfig
from samkv_rag.model.attention import fold_heads
from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.forward import PlannedPass
from samkv_rag.sparse.layout import PromptLayout
from samkv_rag.sparse.plan import make_plan
from samkv_rag.sparse.text import TextBelow, run_text_below

_MAX_SCORING_TOKENS = 64
"""Of a long tail (a chat history) only the last tokens score; all of it is run."""


def scout(decoder: Decoder, layout: PromptLayout, config: SamKVConfig) -> tuple[torch.Tensor, TextBelow]:
    """Run the prompt's text over all cached KV; return each position's score, ``[tokens]``.

    The score is the attention that the question's tokens pay to a position, summed over heads and
    the layers of ``config.score_layers``. Costs the text's tokens only. The text's state at
    the layer where recomputation resumes, which it passes, is returned too.
    """
    plan = make_plan(layout, kept=torch.ones_like(layout.is_text))
    scores = AttentionScores(decoder, layout, plan.row_positions, config)
    attend = PlannedPass(decoder, plan, observer=scores)
    resume_layer = config.first_recomputed_layer(decoder.num_layers)
    below = run_text_below(decoder, layout, attend, resume_layer)
    decoder.run_layers(below.hidden, plan.row_positions, attend, range(resume_layer, scores.last_layer))
    return scores.scores, below


class AttentionScores:
    """Sums the attention of the question's tokens over heads and layers."""

    def __init__(
        self, decoder: Decoder, layout: PromptLayout, row_positions: torch.Tensor, config: SamKVConfig
    ) -> None:
        first, last = config.score_layers
        self.first_layer = int(first * decoder.num_layers)
        self.last_layer = max(self.first_layer + 1, round(last * decoder.num_layers))
        self.scores = torch.zeros(layout.num_tokens, device=layout.device)
        num_tail = layout.tail.stop - layout.tail.start
        num_rows = min(num_tail, _MAX_SCORING_TOKENS)
        self._rows = slice(len(row_positions) - num_rows, len(row_positions))
        # These rows follow every chunk and see all of it: only among the tail is there a future to mask.
        self._tail = layout.tail
        future = torch.ones(num_rows, num_tail, dtype=torch.bool, device=layout.device)
        self._future = future.triu(1 + num_tail - num_rows)
        self._weights = _row_weights(num_rows, config).to(layout.device)

    def __call__(self, layer: int, query: torch.Tensor, keys: torch.Tensor, scaling: float) -> None:
        """See :class:`~samkv_rag.sparse.forward.Observer`."""
        if not self.first_layer <= layer < self.last_layer:
            return
        scoring = fold_heads(query[:, :, self._rows], keys.shape[1])[0] * scaling
        logits = torch.unflatten(scoring @ keys[0].transpose(-1, -2), 1, (-1, len(self._weights)))
        logits[..., self._tail].masked_fill_(self._future, -torch.inf)  # [kv_heads, group, rows, columns]
        self.scores += (self._weights.to(logits.dtype) @ logits.softmax(-1)).float().sum((0, 1))


def _row_weights(num_rows: int, config: SamKVConfig) -> torch.Tensor:
    """Weight of each scoring token, ``[rows]``: the emphasised last tokens together weigh
    ``config.emphasis_weight`` times what the others do together, however long the question is.

    The last token, from which the answer is predicted, looks for the answer itself; the question's
    own look for what it talks about. Both are needed: the first finds the answer, the others evidence.
    """
    num_emphasised = min(config.emphasis_tokens, num_rows)
    weights = torch.full((num_rows,), 1.0 / max(1, num_rows - num_emphasised))
    weights[num_rows - num_emphasised :] = config.emphasis_weight / max(1, num_emphasised)
    return weights
