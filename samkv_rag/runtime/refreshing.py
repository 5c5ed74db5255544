"""Refreshes: every few tokens of a long answer, its last tokens select again what to retain.

They run over all cached KV, as the question did when it scouted. The blocks that they attend to come in with their
cached KV and replace as many tokens, as in RefreshKV (arXiv 2411.05787). The answer's own KV does not change.
"""

from __future__ import annotations

import copy
import time
from math import inf

import torch

from samkv_rag.model.attention import LayerSpec, attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Prefilled, Scout, SparsePrefill
from samkv_rag.prefill.passes.plan import make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader
from samkv_rag.prefill.scout import MAX_SCORING_TOKENS, AttentionScores, credit_sentences
from samkv_rag.prompt.layout import PromptLayout


class Refresher:
    """Refreshes what one sequence retains, and records the effects.

    Args:
        method: the method that prefilled; if it is not ``Scout``, refreshes use ``Scout``'s defaults.
        layout: the prompt as it was prefilled; this object keeps its readers open.
        prefilled: what is retained, and the blocks.
    """

    def __init__(
        self, decoder: Decoder, method: SparsePrefill, layout: PromptLayout, prefilled: Prefilled, buffer: KVBuffer
    ) -> None:
        assert prefilled.block_scores is not None
        self._decoder, self._buffer = decoder, buffer
        self._layout = PromptLayout(layout.segments, layout.device)  # a copy: the sequence releases its own
        self._bytes_before = layout.bytes_read
        self._blocks = prefilled.block_scores.blocks
        self._scout = method if isinstance(method, Scout) else Scout()
        self._every = method.refresh_tokens or inf
        self._slots = prefilled.retained.nonzero()[:, 0]
        """``[retained]``, prompt position of the token in each of the buffer's first places"""
        self._num_seen = 0
        """Answer tokens that were in the buffer at the last refresh."""
        self.arrivals: list[tuple[int, torch.Tensor]] = []
        """For each refresh: characters of the answer by then, and positions of the tokens that came in."""
        self.seconds = 0.0

    def is_due(self, num_answer_tokens: int) -> bool:
        """Return whether enough of the answer was decoded since the last refresh."""
        return num_answer_tokens - 1 - self._num_seen >= self._every

    def over(self, buffer: KVBuffer) -> Refresher:
        """Return a refresher for another answer, which decodes from ``buffer``, a copy, and was not refreshed yet."""
        other = copy.copy(self)
        other._buffer, other._slots, other.arrivals = buffer, self._slots.clone(), []
        return other

    @property
    def bytes_read(self) -> int:
        """Bytes of stored chunks read by refreshes."""
        return self._layout.count_bytes_read() - self._bytes_before

    def stop(self) -> None:
        """Disable further refreshes."""
        self._every = inf

    def refresh(self, token_ids: list[int], num_chars: int) -> None:
        """Exchange retained tokens for those that the end of the answer attends to.

        The last of the answer's ``token_ids`` has been chosen but not run; it selects, too. ``num_chars`` is the length
        of the text so far.

        Raises:
            DamagedChunkError: a chunk can no longer be read; the answer can go on unchanged.
        """
        started = time.perf_counter()
        first = max(self._num_seen, len(token_ids) - MAX_SCORING_TOKENS)
        self._num_seen = len(token_ids) - 1
        held = torch.zeros_like(self._layout.is_chunk).index_fill_(0, self._slots, True)
        middle = torch.zeros_like(held).index_fill_(0, self._blocks.positions, True)
        best = self._blocks.best_within(self._score(token_ids[first:], first), int((held & middle).sum()))
        wanted = (held & ~middle) | best
        arriving, leaving = (wanted & ~held).nonzero()[:, 0], (~wanted[self._slots]).nonzero()[:, 0]
        if len(arriving):
            self._exchange(leaving, arriving)
        self.arrivals.append((num_chars, arriving))
        self.seconds += time.perf_counter() - started

    def _score(self, token_ids: list[int], first: int) -> torch.Tensor:
        """Return the attention of ``token_ids``, the answer from its token ``first`` on, to each block, ``[blocks]``.

        They see the whole prompt: retained tokens as they are in the buffer, the others as they are cached.
        """
        layout, buffer, slots = self._layout, self._buffer, self._slots
        start = layout.num_tokens + first
        stop = start + len(token_ids)
        scores = AttentionScores(self._decoder, self._scout, stop, len(token_ids))
        layers = range(scores.layers[-1] + 1)
        read = LayerReader(self._decoder, make_plan(layout, torch.ones_like(layout.is_chunk)), layers)

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
        ) -> torch.Tensor:
            states = []
            for cached, held, own in zip(read(layer), buffer.layer(layer), (key, value), strict=True):
                cached.index_copy_(2, slots, held[:, :, : len(slots)])
                states.append(torch.cat((cached, held[:, :, len(slots) : len(slots) + first], own), dim=2))
            keys, values = states
            scores(layer, query, keys, spec)
            return attention(query, keys, values, spec, is_causal=True)

        hidden = self._decoder.embed(torch.tensor([token_ids]))
        self._decoder.run_layers(hidden, torch.arange(start, stop), attend, layers)
        own = credit_sentences(scores.scores[: layout.num_tokens], layout, self._scout.sentence_credit)
        return self._blocks.top_token_mean(own, self._scout.block_top_tokens)

    def _exchange(self, leaving: torch.Tensor, arriving: torch.Tensor) -> None:
        """Write the cached KV of prompt tokens ``arriving`` over the buffer's places ``leaving``, both ``[tokens]``.

        The buffer's positions do not change: without windows only their order matters.
        """
        mask = torch.zeros_like(self._layout.is_chunk).index_fill_(0, arriving, True)
        read = LayerReader(self._decoder, make_plan(self._layout, mask))
        # Read everything before writing, so that an error does not leave layers with different tokens.
        layers = [[states.clone() for states in read(layer)] for layer in range(self._decoder.num_layers)]
        for layer, arrived in enumerate(layers):
            for held, states in zip(self._buffer.layer(layer), arrived, strict=True):
                held[:, :, leaving] = states
        self._slots[leaving] = arriving
