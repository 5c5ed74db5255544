"""Refreshes: at its beginning and every few tokens, the answer's newest token selects again what to retain.

In layers that score, its queries meet the keys of the whole prompt as cached, as the question's do in scouting. In
the last of these layers the blocks that question and answer attend to come in and replace as many tokens, as in
RefreshKV (arXiv 2411.05787). They are computed in view of what stays. That layer and those above it see them at once.
The answer's KV stays as it is, unless ``revise_tokens`` run again in the same pass.
"""

from __future__ import annotations

import copy
import logging
import time
from functools import cached_property

import torch

from samkv_rag.model.attention import Attend, LayerSpec, additive, attention
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Prefilled, Scout, SparsePrefill
from samkv_rag.prefill.passes.plan import Plan, make_plan
from samkv_rag.prefill.passes.planned_pass import KV, LayerReader
from samkv_rag.prefill.scout import AttentionScores, credit_sentences
from samkv_rag.prompt.layout import PromptLayout

logger = logging.getLogger(__name__)

_MEMORY = 0.5
"""Share of the earlier scores in a refresh. By its own alone, a token exchanges half of the blocks at a time."""
_MAX_ARRIVING = 64
"""Tokens that come in at a time. So few rows take little longer than one, because the weights are read anyway."""


class Refresher:
    """Refreshes what one sequence retains, and records the effects.

    Args:
        method: the method that prefilled; if it is not ``Scout``, refreshes use ``Scout``'s defaults.
        layout: the prompt as it was prefilled; this object keeps its readers open.
        prefilled: what is retained, and the blocks.
        every: each of the answer's first so many tokens refreshes, and then one in every so many.
    """

    def __init__(
        self,
        decoder: Decoder,
        method: SparsePrefill,
        layout: PromptLayout,
        prefilled: Prefilled,
        buffer: KVBuffer,
        every: int,
    ) -> None:
        assert prefilled.block_scores is not None
        self._decoder, self._buffer = decoder, buffer
        self._layout = PromptLayout(layout.segments, layout.device)  # a copy: the sequence releases its own
        self._bytes_before = layout.bytes_read
        self._blocks = prefilled.block_scores.blocks
        self._scout = method if isinstance(method, Scout) else Scout()
        self._every, self._num_revised = every, method.revise_tokens
        self.error: Exception | None = None
        """Why a refresh failed; there are no more then."""
        self.layers = self._scout.layers_that_score(decoder)[::-2][::-1]
        """Every second layer that scores, with the last one: they select as well as all, in half of the time."""
        self._scores = prefilled.block_scores.scores if isinstance(method, Scout) else None
        """``[blocks]``: the question's, then their averages with those of each refresh; None: another measure"""
        self._slots = prefilled.retained.nonzero()[:, 0]
        """``[retained]``, prompt position of the token in each of the buffer's first places"""
        self.arrivals: list[tuple[int, torch.Tensor]] = []
        """For each refresh: characters of the answer by then, and positions of the tokens that came in."""
        self.seconds = 0.0

    def is_due(self, num_answer_tokens: int) -> bool:
        """Return whether the newest of so many tokens of the answer selects again."""
        return self.error is None and (num_answer_tokens <= self._every or num_answer_tokens % self._every == 0)

    def num_rows(self, num_answer_tokens: int) -> int:
        """Return how many of the answer's last tokens run in the step of the newest one, itself included."""
        return 1 + min(self._num_revised, num_answer_tokens - 1) if self.is_due(num_answer_tokens) else 1

    def over(self, buffer: KVBuffer) -> Refresher:
        """Return a refresher for another answer, which decodes from ``buffer``, a copy, and was not refreshed yet."""
        other = copy.copy(self)
        other._buffer, other._slots, other.arrivals = buffer, self._slots.clone(), []
        return other

    @property
    def bytes_read(self) -> int:
        """Bytes of stored chunks read by refreshes."""
        return self._layout.count_bytes_read() - self._bytes_before

    def attend(self, position_ids: torch.Tensor, num_chars: int) -> Attend:
        """Return the attention of the answer's last tokens, at ``position_ids`` ``[rows]``, with a refresh by the last.

        All but the last are in the buffer and run again. ``num_chars`` of text precede the last.
        """
        self._buffer.drop_last(len(position_ids) - 1)
        attend = CausalPass(self._buffer, position_ids)
        scores = AttentionScores(self._decoder, self._scout, self._layout.num_tokens + self._num_answer_tokens, 1)
        read = LayerReader(self._decoder, self._everything, self.layers, keys_only=True)

        def refreshing(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
        ) -> torch.Tensor:
            if layer in self.layers and self.error is None:
                started = time.perf_counter()
                try:
                    scores(layer, query, self._all_keys(layer, read, key), spec)
                    if layer == self.layers[-1]:
                        self._select(scores.scores, num_chars)
                except Exception as error:  # a chunk cannot be read again, say; the answer goes on as it is
                    logger.warning("a refresh failed (%s); its answer is not refreshed any more", error)
                    self.error = error
                self.seconds += time.perf_counter() - started
            return attend(layer, query, key, value, spec)

        return refreshing

    @property
    def _num_answer_tokens(self) -> int:
        """Tokens of the answer, those included that run now."""
        return len(self._buffer.positions) - len(self._slots)

    def _all_keys(self, layer: int, read: LayerReader, key: torch.Tensor) -> torch.Tensor:
        """Return the keys of prompt and answer: those in the buffer as they are there, the others as cached."""
        num_retained, cached, held = len(self._slots), read(layer)[0], self._buffer.layer(layer)[0]
        cached.index_copy_(2, self._slots, held[:, :, :num_retained])
        return torch.cat((cached, held[:, :, num_retained:], key), dim=2)

    def _select(self, token_scores: torch.Tensor, num_chars: int) -> None:
        """Exchange retained tokens for those of the best blocks, by the scores of prompt and answer, ``[tokens]``."""
        layout, blocks = self._layout, self._blocks
        credited = credit_sentences(token_scores[: layout.num_tokens], layout, self._scout.sentence_credit)
        scores = blocks.top_token_mean(credited, self._scout.block_top_tokens)
        if self._scores is not None:  # brought to the same sum
            earlier = self._scores * (scores.sum() / self._scores.sum().clamp(min=1e-9))
            scores = _MEMORY * earlier + (1 - _MEMORY) * scores
        self._scores = scores
        held = torch.zeros_like(layout.is_chunk).index_fill_(0, self._slots, True)
        middle = torch.zeros_like(held).index_fill_(0, blocks.positions, True)
        wanted = (held & ~middle) | blocks.best_within(scores, int((held & middle).sum()))
        arriving, leaving = (wanted & ~held).nonzero()[:, 0], (~wanted[self._slots]).nonzero()[:, 0]
        if len(arriving) > _MAX_ARRIVING:  # the best take the places of the worst
            of_token = scores.new_zeros(layout.num_tokens).index_copy(0, blocks.positions, scores[blocks.of_token])
            best = of_token[arriving].argsort(descending=True, stable=True)[:_MAX_ARRIVING]
            worst = of_token[self._slots[leaving]].argsort(stable=True)[:_MAX_ARRIVING]
            arriving, leaving = arriving[best].sort().values, leaving[worst].sort().values
        if len(arriving):
            self._exchange(leaving, arriving)
        self.arrivals.append((num_chars, arriving))

    @cached_property
    def _everything(self) -> Plan:
        return make_plan(self._layout, torch.ones_like(self._layout.is_chunk))

    def _exchange(self, leaving: torch.Tensor, arriving: torch.Tensor) -> None:
        """Compute prompt tokens ``arriving`` in view of what stays, and write their KV over the places ``leaving``.

        Both are ``[tokens]``. The buffer's positions do not change: without windows only their order matters.
        """
        slots = self._slots.index_copy(0, leaving, arriving)
        mask = additive(slots <= arriving[:, None], self._decoder.dtype)
        computed: list[KV] = []

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
        ) -> torch.Tensor:
            computed.append((key, value))
            held = (states[:, :, : len(slots)] for states in self._buffer.layer(layer))
            keys, values = (one.index_copy(2, leaving, own) for one, own in zip(held, (key, value), strict=True))
            return attention(query, keys, values, spec, mask)

        self._decoder.run_layers(self._decoder.embed(self._layout.token_ids[None, arriving]), arriving, attend)
        for layer, states in enumerate(computed):  # at the end, so that an error leaves all layers as they were
            for place, own in zip(self._buffer.layer(layer), states, strict=True):
                place.index_copy_(2, leaving, own)
        self._slots = slots
