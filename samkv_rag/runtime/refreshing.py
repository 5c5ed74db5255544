"""Refreshes: at its beginning and every few tokens, the answer's newest token selects again what to retain.

In layers that score, its queries meet the keys of the whole prompt as cached, as the question's do in scouting. The
blocks that question and answer attend to replace as many tokens, as in RefreshKV (arXiv 2411.05787). Their KV comes in
as cached, so the layers above see it at once. An index has none: they are computed together with the next token, in
view of what stays. The answer's KV stays as it is, unless its last ``revise_tokens`` run again with the next token.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch

from samkv_rag.forking import cached_property
from samkv_rag.model.attention import Attend, LayerSpec, additive, attention
from samkv_rag.model.decoder import Decoder, Rows, causal_rows, side_by_side
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Prefilled, Scout, SparsePrefill
from samkv_rag.prefill.passes.plan import Plan, make_plan
from samkv_rag.prefill.passes.planned_pass import LayerReader
from samkv_rag.prefill.scout import AttentionScores, credit_sentences
from samkv_rag.prompt.layout import PromptLayout

logger = logging.getLogger(__name__)

_MEMORY = 0.5
"""Weight of scores a token later. By its own alone, each of the first tokens would exchange half of the blocks."""
_MAX_COMPUTED = 64
"""Tokens computed at a time. With them the next token takes one and a half to two and a half times as long."""


class _Exchange(NamedTuple):
    leaving: torch.Tensor
    """``[tokens]``, their places in the buffer"""
    arriving: torch.Tensor
    """``[tokens]``, positions in the prompt, rising"""


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
        # A single token selects, whose weight must not be 0.
        self._scout = replace(method if isinstance(method, Scout) else Scout(), emphasis_tokens=0)
        self._every, self._num_revised = every, method.revise_tokens
        self._computes = not all(segment.reader.has_all_kv for segment in layout.cached if segment.reader)
        """Whether it computes what comes in, because not all KV is at hand."""
        self.error: Exception | None = None
        """Why a refresh failed; there are no more then."""
        self.layers = self._scout.layers_that_score(decoder)[::-2][::-1]
        """Every second layer that scores, with the last one: they select as well as all, in half of the time."""
        self._scores = prefilled.block_scores.scores if isinstance(method, Scout) else None
        """``[blocks]``: the question's, then their averages with those of each refresh; None: another measure"""
        self._slots = prefilled.retained.nonzero()[:, 0]
        """``[retained]``, prompt position of the token in each of the buffer's first places"""
        self.arrivals: list[tuple[int, torch.Tensor]] = []
        """For each refresh: characters of the answer by then, and positions of the tokens that came in, on the host."""
        self._latest: _Exchange | None = None
        """What the newest token has selected."""
        self._num_scored = 0
        """Tokens of the answer up to the last that selected."""
        self.seconds = 0.0

    def is_due(self, num_answer_tokens: int) -> bool:
        """Return whether the newest of so many tokens of the answer selects again."""
        return self.error is None and (num_answer_tokens <= self._every or num_answer_tokens % self._every == 0)

    def over(self, buffer: KVBuffer) -> Refresher:
        """Return a refresher for another answer, which decodes from ``buffer``, a copy, and was not refreshed yet."""
        other = copy.copy(self)
        other._buffer, other.arrivals = buffer, []
        return other

    @property
    def bytes_read(self) -> int:
        """Bytes of stored chunks read by refreshes."""
        return self._layout.count_bytes_read() - self._bytes_before

    def rows(self, answer_ids: Sequence[int], num_new: int, num_chars: int) -> Rows:
        """Return what runs for the last ``num_new`` tokens of the answer; the newest selects if it is due.

        If something came in, the tokens of the answer that are revised run before them, and before these what is
        computed of it. The answer's text has ``num_chars`` by now.
        """
        exchange, self._latest = self._latest, None
        parts, num_tokens, num_again = [], len(answer_ids), 0
        if exchange is not None:
            if self._computes:
                parts += [self._computing(exchange)] if len(exchange.arriving) else []
                self.arrivals.append((num_chars, exchange.arriving.cpu()))
            if len(exchange.arriving):
                num_again = min(self._num_revised, num_tokens - num_new)
        self._buffer.drop_last(num_again)
        first = num_tokens - num_new - num_again
        parts.append(causal_rows(self._buffer, answer_ids[first:], self._layout.num_tokens + first))
        rows = side_by_side(parts)
        return rows._replace(attend=self._selecting(rows.attend, num_chars)) if self.is_due(num_tokens) else rows

    def _take_cached(self, exchange: _Exchange) -> None:
        """Write the cached KV of the tokens that come in over that of those that leave."""
        leaving, arriving = exchange
        decoder, layers = self._decoder, range(self._decoder.num_layers)
        wanted = torch.zeros_like(self._layout.is_chunk).index_fill_(0, arriving, True)
        plan = make_plan(self._layout, wanted, with_text=False)
        cached = torch.empty(2, len(layers), decoder.num_kv_heads, len(arriving), decoder.head_dim, dtype=decoder.dtype)
        for source in plan.sources:  # all layers of a chunk at once take half as long as layer by layer
            tokens = torch.arange(len(source.reader.token_ids)) if source.tokens is None else source.tokens
            for states, own in zip(cached, source.reader.rows(layers, tokens), strict=True):
                states[:, :, source.columns] = own
        keys, values = (states.split(1) for states in cached.to(decoder.device))
        turned = [turn(states) for turn, states in zip(decoder.rotation_by(plan.rotate_offsets), keys, strict=True)]
        for layer, states in enumerate(zip(turned, values, strict=True)):  # nothing can fail from here on
            for held, own in zip(self._buffer.layer(layer), states, strict=True):
                held.index_copy_(2, leaving, own)
        self._place(exchange)

    def _computing(self, exchange: _Exchange) -> Rows:
        """Return the tokens that come in; they write their KV over that of those that leave."""
        self._place(exchange)
        leaving, arriving = exchange
        num_retained = len(self._slots)
        mask = additive(self._slots <= arriving[:, None], self._decoder.dtype)

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
        ) -> torch.Tensor:
            keys, values = (states[:, :, :num_retained] for states in self._buffer.layer(layer))
            keys.index_copy_(2, leaving, key)
            values.index_copy_(2, leaving, value)
            return attention(query, keys, values, spec, mask)

        return Rows(self._layout.token_ids[arriving].cpu(), arriving.cpu(), attend)

    def _place(self, exchange: _Exchange) -> None:
        """Note which token is where. The buffer's positions stay: without windows only their order matters."""
        self._slots = self._slots.index_copy(0, exchange.leaving, exchange.arriving)

    def _selecting(self, attend: Attend, num_chars: int) -> Attend:
        """Return ``attend``, after which the last of its rows selects."""
        with self._last_if_it_fails():
            scores = AttentionScores(self._decoder, self._scout, self._layout.num_tokens + self._num_answer_tokens, 1)
            read = LayerReader(self._decoder, self._everything, self.layers, keys_only=True)

        def selecting(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
        ) -> torch.Tensor:
            output = attend(layer, query, key, value, spec)
            if layer in self.layers and self.error is None:
                with self._last_if_it_fails():
                    scores(layer, query, self._all_keys(layer, read), spec)
                    if layer == self.layers[-1]:
                        self._exchange(scores.scores, num_chars)
            return output

        return selecting

    def _exchange(self, token_scores: torch.Tensor, num_chars: int) -> None:
        """Select by the scores of prompt and answer, ``[tokens]``, and bring in what is cached."""
        exchange = self._select(token_scores)
        if not self._computes:
            if len(exchange.arriving):
                self._take_cached(exchange)
            self.arrivals.append((num_chars, exchange.arriving.cpu()))
        self._latest = exchange

    @contextmanager
    def _last_if_it_fails(self) -> Iterator[None]:
        """Count the time of a part of a refresh; after an error there are no more refreshes."""
        started = time.perf_counter()
        try:
            yield
        except Exception as error:  # a chunk cannot be read again, say; the answer goes on as it is
            logger.warning("a refresh failed (%s); its answer is not refreshed any more", error)
            self.error = error.with_traceback(None)  # whose frames hold this object, and so the buffer
        self.seconds += time.perf_counter() - started

    @property
    def _num_answer_tokens(self) -> int:
        """Tokens of the answer, those included that run now."""
        return len(self._buffer.positions) - len(self._slots)

    def _all_keys(self, layer: int, read: LayerReader) -> torch.Tensor:
        """Return the keys of prompt and answer: those in the buffer as they are there, the others as cached."""
        num_retained, cached, held = len(self._slots), read(layer)[0], self._buffer.layer(layer)[0]
        cached.index_copy_(2, self._slots, held[:, :, :num_retained])
        return torch.cat((cached, held[:, :, num_retained:]), dim=2)

    def _select(self, token_scores: torch.Tensor) -> _Exchange:
        """Select the best blocks by the scores of prompt and answer, ``[tokens]``, and which tokens make room."""
        layout, blocks = self._layout, self._blocks
        credited = credit_sentences(token_scores[: layout.num_tokens], layout, self._scout.sentence_credit)
        scores = blocks.top_token_mean(credited, self._scout.block_top_tokens)
        if self._scores is not None:  # brought to the same sum
            earlier = self._scores * (scores.sum() / self._scores.sum().clamp(min=1e-9))
            weight = _MEMORY ** (self._num_answer_tokens - self._num_scored)
            scores = weight * earlier + (1 - weight) * scores
        self._scores, self._num_scored = scores, self._num_answer_tokens
        held = torch.zeros_like(layout.is_chunk).index_fill_(0, self._slots, True)
        middle = torch.zeros_like(held).index_fill_(0, blocks.positions, True)
        wanted = (held & ~middle) | blocks.best_within(scores, int((held & middle).sum()))
        arriving, leaving = (wanted & ~held).nonzero()[:, 0], (~wanted[self._slots]).nonzero()[:, 0]
        if self._computes and len(arriving) > _MAX_COMPUTED:  # the best take the places of the worst
            of_token = scores.new_zeros(layout.num_tokens).index_copy(0, blocks.positions, scores[blocks.of_token])
            best = of_token[arriving].argsort(descending=True, stable=True)[:_MAX_COMPUTED]
            worst = of_token[self._slots[leaving]].argsort(stable=True)[:_MAX_COMPUTED]
            arriving, leaving = arriving[best].sort().values, leaving[worst].sort().values
        return _Exchange(leaving, arriving)

    @cached_property
    def _everything(self) -> Plan:
        return make_plan(self._layout, torch.ones_like(self._layout.is_chunk))
