"""Refreshes: every few tokens of a long answer, its newest token selects again what to retain.

The token runs ahead, over what is retained, up to the layers that score. There its queries meet the keys of the whole
prompt as cached. The blocks that it attends to come in with their cached KV and replace as many tokens, as in RefreshKV
(arXiv 2411.05787). Then the token runs as any other. The answer's own KV does not change.
"""

from __future__ import annotations

import copy
import time
from functools import cached_property
from math import inf

import torch

from samkv_rag.model.attention import LayerSpec, attention
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Prefilled, Scout, SparsePrefill
from samkv_rag.prefill.passes.plan import Plan, make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader
from samkv_rag.prefill.scout import AttentionScores, credit_sentences
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
        self.layers = self._scout.layers_that_score(decoder)
        self._asked: dict[int, tuple[torch.Tensor, torch.Tensor, LayerSpec]] = {}
        """For each of these layers: query and key of the token that runs ahead, and how the layer attends."""
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
        other._buffer, other._slots, other._asked, other.arrivals = buffer, self._slots.clone(), {}, []
        return other

    @property
    def bytes_read(self) -> int:
        """Bytes of stored chunks read by refreshes."""
        return self._layout.count_bytes_read() - self._bytes_before

    def stop(self) -> None:
        """Disable further refreshes."""
        self._every = inf

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        """Attention of the token that runs ahead: it sees the buffer and itself, and is not added to the buffer."""
        if layer in self.layers:
            self._asked[layer] = query, key, spec
        held = zip(self._buffer.layer(layer), (key, value), strict=True)
        keys, values = (torch.cat((states, own), dim=2) for states, own in held)
        return attention(query, keys, values, spec)

    def refresh(self, num_chars: int, ahead_s: float) -> None:
        """Exchange retained tokens for those that the token attends to that ran ahead, in ``ahead_s`` seconds.

        ``num_chars`` is the length of the answer's text so far.

        Raises:
            DamagedChunkError: a chunk can no longer be read; the answer can go on unchanged.
        """
        started = time.perf_counter()
        held = torch.zeros_like(self._layout.is_chunk).index_fill_(0, self._slots, True)
        middle = torch.zeros_like(held).index_fill_(0, self._blocks.positions, True)
        best = self._blocks.best_within(self._score(), int((held & middle).sum()))
        wanted = (held & ~middle) | best
        arriving, leaving = (wanted & ~held).nonzero()[:, 0], (~wanted[self._slots]).nonzero()[:, 0]
        if len(arriving):
            self._exchange(leaving, arriving)
        self._num_seen = len(self._buffer.positions) - len(self._slots)
        self.arrivals.append((num_chars, arriving))
        self.seconds += ahead_s + time.perf_counter() - started

    def _score(self) -> torch.Tensor:
        """Return the attention of the token that ran ahead to each block, ``[blocks]``.

        It sees the whole prompt: retained tokens as they are in the buffer, the others as they are cached.
        """
        layout, slots = self._layout, self._slots
        num_columns = layout.num_tokens + len(self._buffer.positions) - len(slots) + 1
        scores = AttentionScores(self._decoder, self._scout, num_columns, 1)
        read = LayerReader(self._decoder, self._everything, self.layers, keys_only=True)
        for layer in self.layers:
            query, key, spec = self._asked[layer]
            cached, held = read(layer)[0], self._buffer.layer(layer)[0]
            cached.index_copy_(2, slots, held[:, :, : len(slots)])
            scores(layer, query, torch.cat((cached, held[:, :, len(slots) :], key), dim=2), spec)
        own = credit_sentences(scores.scores[: layout.num_tokens], layout, self._scout.sentence_credit)
        return self._blocks.top_token_mean(own, self._scout.block_top_tokens)

    @cached_property
    def _everything(self) -> Plan:
        return make_plan(self._layout, torch.ones_like(self._layout.is_chunk))

    def _exchange(self, leaving: torch.Tensor, arriving: torch.Tensor) -> None:
        """Write the cached KV of prompt tokens ``arriving`` over the buffer's places ``leaving``, both ``[tokens]``.

        The buffer's positions do not change: without windows only their order matters.
        """
        mask = torch.zeros_like(self._layout.is_chunk).index_fill_(0, arriving, True)
        plan = make_plan(self._layout, mask)
        rotate, layers = self._decoder.rotation_by(plan.rotate_offsets), range(self._decoder.num_layers)
        # Read everything before writing, so that an error does not leave layers with different tokens.
        read = [[source.reader.layer(layer, source.tokens) for layer in layers] for source in plan.sources]
        for layer, of_sources in enumerate(zip(*read, strict=True)):
            keys, values = (torch.cat(states, dim=1)[None].to(mask.device) for states in zip(*of_sources, strict=True))
            held_keys, held_values = self._buffer.layer(layer)
            held_keys[:, :, leaving], held_values[:, :, leaving] = rotate[layer](keys), values
        self._slots[leaving] = arriving
