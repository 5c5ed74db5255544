"""Scout, the default method and our own: the question attends to the whole cached KV, and so selects what it needs.

It is SamKV's flow with another selection: the paper compares mean keys, which on small models select other tokens.
Cached chunks have no fixed place, so Scout also moves them to where the model reads best. Full prefill cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch.nn.functional import normalize

from samkv_rag.checks import require_choice, require_integer, require_number
from samkv_rag.chunk_cache import SCORE_LAYERS, index_anchors, ranking_layer, score_layers
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.model.attention import LayerSpec, additive, attention_weights, fold_heads
from samkv_rag.model.decoder import Decoder
from samkv_rag.prefill.base import Need, PrefillContext
from samkv_rag.prefill.passes.plan import Plan, make_plan
from samkv_rag.prefill.passes.planned_pass import KV, LayerReader, Observer, PlannedPass, TextStates
from samkv_rag.prefill.passes.selection import Anchors, Blocks, BlockScores, Budget, anchor_mask
from samkv_rag.prefill.sparse import Selected, SparsePrefill
from samkv_rag.prompt.layout import PromptLayout, Segment

Placement = Literal["by_score", "prompt"]
Scouted = Literal["all", "anchors"]
_MIN_MATCH = 1e-3
"""If all chunks match alike, attention alone scores their blocks."""
_QUESTION_MARKS = "?\uff1f\u061f"
"""Also the full-width one of Chinese and Japanese, and the Arabic one."""
MAX_SCORING_TOKENS = 128
"""Only the last tokens of a long tail (a chat history) rank and score; all of them are run."""


@dataclass(frozen=True)
class Scout(SparsePrefill):
    """Selects the blocks that the question attends to.

    Args:
        initial_tokens: how many first tokens of a chunk are always retained: they say what the chunk is about.
        block_tokens: tokens selected together.
        block_top_tokens: a block's score is the mean of so many of its highest token scores.
        score_layers: part of the depth whose attention counts, from and to, in [0, 1].
        emphasis_tokens: how many of the prompt's last tokens are emphasised.
        emphasis_weight: total weight of their attention, relative to that of the question's other tokens.
        placement: where the model sees chunks. ``"prompt"``: in the prompt's order. ``"by_score"``: the best match
            nearest to the question, because small models hardly look further. Chunks between different texts
            ("Source 2:") stay in place.
        match_power: with placement by score, block scores are multiplied by the chunk's match to this power; 0: not.
        sentence_credit: how much of the attention on a sentence's end counts for its words instead; 0: none of it.
        scouted: what the question runs over: ``"all"`` cached KV, or a tenth of each chunk, its ``"anchors"``
            (QCFuse, arXiv 2606.05875); all tokens get scores either way. None: all, or the anchors if only an index
            is stored.
        several_questions: a message with so many question marks asks for more than the retained tokens can hold. So it
            is not run again over them, but goes on as it was when it scouted and saw all cached KV. A single question
            answers better from what was selected for it. Chunks stored as an index are not seen whole by scouting,
            and every question runs again.

    Other arguments: see :class:`SparsePrefill`.
    """

    name: ClassVar[str] = "scout"

    initial_tokens: int = 4
    block_tokens: int = 8
    block_top_tokens: int = 4
    score_layers: tuple[float, float] = SCORE_LAYERS
    emphasis_tokens: int = 1
    emphasis_weight: float = 3.0
    placement: Placement = "by_score"
    match_power: float = 1.0
    sentence_credit: float = 3.0
    scouted: Scouted | None = None
    several_questions: int = 3
    refresh_tokens: int | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("initial_tokens", self.initial_tokens, 0)
        require_integer("block_tokens", self.block_tokens, 1)
        require_integer("block_top_tokens", self.block_top_tokens, 1)
        require_integer("emphasis_tokens", self.emphasis_tokens, 0)
        require_number("emphasis_weight", self.emphasis_weight, 0.0, 1e6)
        require_choice("placement", self.placement, get_args(Placement))
        require_integer("several_questions", self.several_questions, 0)
        require_number("match_power", self.match_power, 0.0, 10.0)
        require_number("sentence_credit", self.sentence_credit, 0.0, 1e6)
        require_choice("scouted", self.scouted, (*get_args(Scouted), None))
        if isinstance(self.score_layers, list):  # from JSON
            object.__setattr__(self, "score_layers", tuple(self.score_layers))
        share = self.score_layers
        is_pair = isinstance(share, tuple) and len(share) == 2 and all(isinstance(x, (int, float)) for x in share)
        if not is_pair or not 0.0 <= share[0] < share[1] <= 1.0:
            raise ConfigurationError(f"score_layers is {share!r}; it must be (from, to) with 0 <= from < to <= 1")

    @property
    def needs(self) -> frozenset[Need]:
        recomputes_all = self.recompute and self.computed_ratio == self.sequence_ratio
        plainly = self.recompute_view == "retained" and self.update == "overwrite"
        scouts_index = self.scouted != "all" and self.score_layers == SCORE_LAYERS
        return frozenset({"index" if recomputes_all and plainly and scouts_index else "kv"})

    def anchors(self, context: PrefillContext) -> Anchors:
        return Anchors(self.initial_tokens, 0)

    def layers_that_score(self, decoder: Decoder) -> list[int]:
        """Return the layers of ``score_layers``, without those whose windows are too narrow to see far chunks."""
        within = score_layers(decoder.num_layers, self.score_layers)
        return [layer for layer in decoder.widest_layers if layer in within] or list(within)

    def select(self, context: PrefillContext, budget: Budget) -> Selected:
        layout, match = self.place(context)
        over_anchors = self.scouted == "anchors" or context.spec.storage == "index"
        asking = layout.asking(context.asked_ids)
        token_scores, text = self.score_tokens(context.decoder, asking, over_anchors)
        token_scores = token_scores[: layout.num_tokens]  # the question was put behind the chunks
        token_scores = credit_sentences(token_scores * match, layout, self.sentence_credit)
        anchors, blocks = anchor_mask(layout, budget.anchors), Blocks(layout, budget.anchors, self.block_tokens)
        scores = blocks.top_token_mean(token_scores, self.block_top_tokens)
        retained = anchors | blocks.best_within(scores, budget.num_tokens - int(anchors.sum()))
        asks_several = sum(map(context.question.count, _QUESTION_MARKS)) >= self.several_questions
        goes_on = asks_several and asking is layout and not over_anchors and len(text.kv) < context.decoder.num_layers
        return Selected(retained, BlockScores(blocks, scores), layout, text if goes_on else None)

    def place(self, context: PrefillContext) -> tuple[PromptLayout, torch.Tensor | float]:
        """Return the prompt with its chunks placed, and the factor of each position's score, ``[tokens]`` or one."""
        layout = context.layout
        if self.placement == "prompt" or len(layout.chunks) < 2:
            return layout, 1.0
        match = rank_chunks(context.decoder, layout.asking(context.asked_ids))
        placed, order = layout.placed(match.tolist())
        weights = match[order].clamp(min=_MIN_MATCH) ** self.match_power
        return placed, torch.where(placed.is_chunk, weights[placed.chunk_number], 1.0)

    def score_tokens(
        self, decoder: Decoder, layout: PromptLayout, over_anchors: bool = False
    ) -> tuple[torch.Tensor, TextStates]:
        """Run the prompt's text over the cached KV, all or the anchors'; return each position's score, ``[tokens]``.

        The score is the attention of the question's tokens to the position, summed over heads and the layers of
        ``score_layers``. Only text is computed, up to the last of them; its states are returned as well.
        """
        plan = make_plan(layout, retained=_all_anchors(layout) if over_anchors else torch.ones_like(layout.is_text))
        scores = AttentionScores(decoder, self, layout.num_tokens, layout.tail.stop - layout.tail.start)
        observer: Observer = _AllKeys(decoder, layout, plan, scores) if over_anchors else scores
        layers = range(scores.layers[-1] + 1)
        computed: list[KV] = []
        hidden = PlannedPass(decoder, plan, observer=observer, layers=layers, computed=computed).run()
        return scores.scores, TextStates(computed, hidden)


def rank_chunks(decoder: Decoder, layout: PromptLayout) -> torch.Tensor:
    """Return how much better than the average chunk each chunk matches the question, ``[chunks]``, at least 0.

    Each token of the question is compared with the most similar token of each chunk, by their values at a quarter of
    the depth, which are cached and do not depend on positions. Words of the prompt's template match all chunks alike
    and count nothing. The chunks' order has no effect.

    Source: late interaction, as in ColBERT (arXiv 2004.12832, section 3.2), there over trained embeddings.
    """
    layer = ranking_layer(decoder.num_layers)
    question = _question_values(decoder, layout, layer)
    chunks = [_chunk_values(decoder, chunk, layer) for chunk in layout.chunks]
    every = torch.cat(chunks)
    # Without scaling, a few channels that are large in every token would hide all others.
    mean, scale = every.mean(0), every.std(0, correction=0).clamp(min=1e-6)
    question = normalize((question - mean) / scale, dim=-1)
    similarity = torch.stack([(question @ normalize((c - mean) / scale, dim=-1).T).amax(1) for c in chunks])
    match: torch.Tensor = (similarity - similarity.mean(0)).clamp(min=0).norm(dim=1)
    return match


def credit_sentences(scores: torch.Tensor, layout: PromptLayout, credit: float) -> torch.Tensor:
    """Move the scores ``[tokens]`` of sentence ends to the sentence's words, divided by the root of their number.

    Models gather a sentence's content at its full stop (SepLLM, arXiv 2412.12094), so questions attend to it. Retained
    alone it would say nothing, and its block would contain the next sentence's words. A chunk's end gathers the whole
    chunk, so the last sentence gets no credit.
    """
    if not credit:
        return scores
    ends = layout.ends_sentence
    starts = ends.roll(1) | (layout.is_chunk & (layout.index_in_chunk == 0))
    sentence = starts.cumsum(0)
    totals = torch.zeros(layout.num_tokens + 1, device=layout.device)
    inner = ends & (layout.chunk_number.roll(-1) == layout.chunk_number)
    of_end = totals.index_add(0, sentence, torch.where(inner, scores, 0.0))
    num_words = totals.index_add(0, sentence, (~ends).float()).clamp(min=1)
    return torch.where(ends, 0.0, scores + layout.is_chunk * credit * (of_end / num_words.sqrt())[sentence])


def _question_values(decoder: Decoder, layout: PromptLayout, layer: int) -> torch.Tensor:
    """Return the values of the prompt's tail, run without the chunks, ``[tokens, kv_heads · head_dim]``."""
    question = layout.without_chunks()
    plan = make_plan(question, retained=torch.ones_like(question.is_text))
    hidden = PlannedPass(decoder, plan, layers=range(layer)).run()
    _, values = decoder.project(hidden, plan.row_positions, layer)
    num_tokens = min(layout.tail.stop - layout.tail.start, MAX_SCORING_TOKENS)
    return values[0, :, -num_tokens:].transpose(0, 1).flatten(1).float()


def _chunk_values(decoder: Decoder, chunk: Segment, layer: int) -> torch.Tensor:
    """Return a chunk's cached values, ``[tokens, kv_heads·head_dim]``."""
    assert chunk.reader is not None
    return chunk.reader.layer_values(layer).transpose(0, 1).flatten(1).to(decoder.device).float()


class AttentionScores:
    """Observes a pass and sums the attention of its last ``num_asking`` tokens to its columns."""

    def __init__(self, decoder: Decoder, method: Scout, num_columns: int, num_asking: int) -> None:
        self.layers = method.layers_that_score(decoder)
        self.scores = torch.zeros(num_columns, device=decoder.device)
        """``[columns]``"""
        num_rows = min(num_asking, MAX_SCORING_TOKENS)
        positions = torch.arange(num_columns, device=decoder.device)
        self._back = positions[-num_rows:, None] - positions
        # The last token, which predicts the answer, looks for the answer; the question's other tokens look for its
        # subject, so for evidence. The ratio of both weights does not depend on the question's length.
        num_emphasised = min(method.emphasis_tokens, num_rows)
        weights = torch.full((num_rows,), 1.0 / max(1, num_rows - num_emphasised))
        weights[num_rows - num_emphasised :] = method.emphasis_weight / max(1, num_emphasised)
        self._weights = weights.to(decoder.device)
        self._masks: dict[int | None, torch.Tensor] = {}

    def __call__(self, layer: int, query: torch.Tensor, keys: torch.Tensor, spec: LayerSpec) -> None:
        if layer not in self.layers:
            return
        num_rows = len(self._weights)
        asking = fold_heads(query[:, :, -num_rows:], keys.shape[1])[0] * spec.scaling
        products = torch.unflatten(asking @ keys[0].transpose(-1, -2), 1, (-1, num_rows))
        mask = self._mask(spec.window, products.dtype)
        weights = attention_weights(products, spec, mask)  # [kv_heads, group, rows, columns]
        self.scores += (self._weights.to(weights.dtype) @ weights).float().sum((0, 1))

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return the additive mask, ``[rows, columns]``; computed once for all layers of a window."""
        if window not in self._masks:
            seen = (self._back >= 0) & (self._back < (window or len(self.scores)))
            self._masks[window] = additive(seen, dtype)
        return self._masks[window]


class _AllKeys:
    """Observes a pass over some of the tokens, and shows ``scores`` the keys of all of them."""

    def __init__(self, decoder: Decoder, layout: PromptLayout, plan: Plan, scores: AttentionScores) -> None:
        everything = make_plan(layout, retained=torch.ones_like(layout.is_text))
        self._read_keys = LayerReader(decoder, everything, scores.layers, keys_only=True)
        self._text_columns = everything.row_columns
        self._columns_in_pass = plan.row_columns
        self._scores = scores

    def __call__(self, layer: int, query: torch.Tensor, keys: torch.Tensor, spec: LayerSpec) -> None:
        if layer in self._scores.layers:
            all_keys, _ = self._read_keys(layer)
            all_keys.index_copy_(2, self._text_columns, keys.index_select(2, self._columns_in_pass))
            self._scores(layer, query, all_keys, spec)


def _all_anchors(layout: PromptLayout) -> torch.Tensor:
    """Return a ``[tokens]`` mask of the text, the cached prefix and the chunks' anchors."""
    mask = ~layout.is_chunk
    for chunk in layout.chunks:
        mask[chunk.start + index_anchors(len(chunk.token_ids)).to(mask.device)] = True
    return mask
