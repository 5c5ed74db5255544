"""Refreshes: the retained tokens follow the answer, within a hard budget."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError
from samkv_rag.model.attention import LayerSpec
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Scout, SparsePrefill
from samkv_rag.runtime import worker
from samkv_rag.runtime.refreshing import Refresher
from samkv_rag.runtime.sequence import Sequence
from samkv_rag.runtime.step import step
from support import tiny
from support.engines import MakeEngine, prefill, together

CHUNKS = [tiny.text(seed, 80) for seed in range(5)]
ANSWER = [7, 301, 45, 12, 222, 90, 411, 18, 77, 150, 33, 260]


@pytest.fixture
def engine(make_engine: MakeEngine) -> SamKVEngine:
    return make_engine(chunks=CHUNKS)


class Written:
    """A prefilled prompt and its answer, with all but the last token in the buffer."""

    def __init__(self, engine: SamKVEngine, method: SparsePrefill) -> None:
        self.decoder = engine.decoder
        self.prefilled, self.layout, _, self.buffer = prefill(engine, method, tiny.rag_prompt(CHUNKS))
        self.num_retained = len(self.buffer.positions)
        self.refresher = Refresher(self.decoder, method, self.layout, self.prefilled, self.buffer)
        positions = self.layout.num_tokens + torch.arange(len(ANSWER) - 1)
        hidden = self.decoder.embed(torch.tensor([ANSWER[:-1]]))
        self.decoder.run_layers(hidden, positions, CausalPass(self.buffer, positions))

    def refresh(self) -> None:
        self.refresher.refresh(ANSWER, 0)

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = [self.buffer.layer(layer) for layer in range(self.decoder.num_layers)]
        return [(keys.clone(), values.clone()) for keys, values in pairs]

    def cached(self, layer: int, which: int) -> torch.Tensor:
        """Return the whole prompt's cached keys (0) or values (1), ``[1, kv_heads, tokens, head_dim]``."""
        held = self.buffer.layer(layer)[which]
        whole = torch.zeros(1, held.shape[1], self.layout.num_tokens, held.shape[3])
        for segment in self.layout.cached:
            assert segment.reader is not None
            whole[0, :, segment.span] = segment.reader.layer(layer)[which]
        return whole if which else self.decoder.rotation_by(self.layout.rotate_offsets)[layer](whole)


def scout(**options: Any) -> Scout:
    return Scout(**{"min_chunk_tokens": 0, "sequence_ratio": 0.3, "refresh_tokens": 4} | options)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["scout", "samkv"])
def test_blocks_come_in_with_their_cached_kv_and_as_many_tokens_go_out(engine: SamKVEngine, name: str) -> None:
    method = tiny.method(name, sequence_ratio=0.3, refresh_tokens=4)
    assert isinstance(method, SparsePrefill)
    written = Written(engine, method)
    places = written.prefilled.retained.nonzero()[:, 0]
    for _ in range(2):  # at the second refresh the last token of the answer alone selects
        before = written.layers()
        written.refresh()
        arrived = written.refresher.arrivals[-1][1]
        assert 0 < len(arrived) < written.num_retained
        assert not torch.isin(arrived, places).any()
        assert written.layout.is_chunk[arrived].all()
        assert len(written.buffer.positions) == written.num_retained + len(ANSWER) - 1
        for layer, (old, new) in enumerate(zip(before, written.layers(), strict=True)):
            changed = (old[0] != new[0]).any(-1).any(1)[0].nonzero()[:, 0]
            assert written.layout.is_chunk[places[changed]].all()
            for which in (0, 1):
                expected = written.cached(layer, which)[:, :, arrived]
                torch.testing.assert_close(new[which][:, :, changed], expected, atol=1e-5, rtol=0)
        places[changed] = arrived


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"recompute_view": "all"}, {"recompute": False}], ids=str)
@pytest.mark.parametrize("first", [0, 5])
def test_a_refresh_adds_what_the_answer_attends_to(engine: SamKVEngine, options: dict[str, Any], first: int) -> None:
    """Compare with the plain way: the answer from its token ``first`` on runs over all other KV in one buffer."""
    by_token = {"score_layers": (0.0, 0.5), "emphasis_weight": 0.0, "sentence_credit": 0.0}
    by_token |= {"block_tokens": 1, "block_top_tokens": 1}
    written = Written(engine, scout(**by_token, **options))
    layout, decoder = written.layout, written.decoder
    everything, held = KVBuffer(decoder.num_layers), written.prefilled.retained
    for layer, pair in enumerate(written.layers()):
        both = []
        for which, states in enumerate(pair):
            whole = written.cached(layer, which)
            whole[:, :, held] = states[:, :, : written.num_retained]
            both.append(torch.cat((whole, states[:, :, written.num_retained :][:, :, :first]), dim=2))
        everything.append(layer, *both)
    paid = torch.zeros(layout.num_tokens)
    positions = layout.num_tokens + torch.arange(first, len(ANSWER))
    everything.positions = torch.arange(layout.num_tokens + first)
    attend = CausalPass(everything, positions)

    def watch(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
        output = attend(layer, query, key, value, spec)
        if layer < max(1, round(0.5 * decoder.num_layers)):
            keys = everything.layer(layer)[0].repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            logits = query @ keys.transpose(-1, -2) * spec.scaling
            future = torch.ones(query.shape[2], keys.shape[2]).triu(1 + layout.num_tokens + first).bool()
            weights = logits.masked_fill(future, -torch.inf).softmax(-1)[0]
            paid.add_(weights[:, :-1, : layout.num_tokens].mean(1).sum(0))
        return output

    decoder.run_layers(decoder.embed(torch.tensor([ANSWER[first:]])), positions, watch)
    written.refresher._num_seen = first
    written.refresh()
    middle = written.prefilled.block_scores.blocks.positions  # type: ignore[union-attr]
    num_blocks = int(held[middle].sum())
    best = middle[paid[middle].topk(num_blocks).indices]
    assert set(written.refresher.arrivals[0][1].tolist()) == set(best.tolist()) - set(held.nonzero()[:, 0].tolist())


# -- in the runtime ------------------------------------------------------------------------------


def prompts() -> list[str]:
    return [tiny.rag_prompt(CHUNKS[i:] + CHUNKS[:i], f"Question number {i} of the tide?") for i in range(5)]


def test_refreshes_are_counted_and_explained(engine: SamKVEngine) -> None:
    ids = iter([*ANSWER, 5, 6])
    result = engine.generate(prompts()[0], method=scout(), max_new_tokens=14, choose=lambda logits: next(ids))
    assert result.token_ids == (*ANSWER, 5, 6)
    metrics = result.metrics
    assert metrics.refreshes == 3  # after 4, 8 and 12 tokens; the last token never runs
    assert 0 < metrics.refresh_s < metrics.total_s - metrics.ttft_s
    assert metrics.refresh_bytes_read > 0
    arrivals = [arrival for use in result.chunks for arrival in use.arrivals]
    assert arrivals
    for use in result.chunks:
        for arrival in use.arrivals:
            assert 0 <= arrival.answer_chars <= len(result.text)
            assert set(arrival.tokens) <= set(range(use.num_tokens))
    plain = engine.generate(prompts()[0], method=scout(refresh_tokens=None), max_new_tokens=14)
    assert (plain.metrics.refreshes, plain.metrics.refresh_bytes_read) == (0, 0)
    assert not any(use.arrivals for use in plain.chunks)
    assert metrics.kv_bytes_resident == plain.metrics.kv_bytes_resident


def test_others_go_on_between_the_layers_of_a_refresh(engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshing: list[Refresher] = []
    stepped: list[list[Refresher | None]] = []
    refresh = Refresher.refresh

    def watched_refresh(self: Refresher, *arguments: Any) -> None:
        refreshing.append(self)
        refresh(self, *arguments)
        refreshing.remove(self)

    def watched_step(decoder: Decoder, sequences: list[Sequence]) -> None:
        refreshers = [sequence.state.refresher for sequence in sequences if sequence.state]
        assert not {*refreshers} & {*refreshing}
        stepped.extend([refreshers] if refreshing else [])
        step(decoder, sequences)

    monkeypatch.setattr(Refresher, "refresh", watched_refresh)
    monkeypatch.setattr(worker, "step", watched_step)
    monkeypatch.setattr(worker, "_STEP_EVERY", 1)  # a refresh of so small a model is over before a step was due
    lengths = (40, 60)  # the second is still answering when the first ends
    asked = [{"prompt": prompt, "max_new_tokens": n} for prompt, n in zip(prompts(), lengths, strict=False)]
    assert all(result.metrics.refreshes for result in together(engine, asked, method=scout()))
    assert stepped


def test_an_answer_that_is_given_up_while_it_is_refreshed_ends(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh, ended = Refresher.refresh, threading.Event()
    finished: list[Refresher] = []
    stream = engine.stream(prompts()[0], method=scout(), max_new_tokens=60)

    def given_up(self: Refresher, *arguments: Any) -> None:
        stream.close()
        try:
            refresh(self, *arguments)
            finished.append(self)
        finally:
            ended.set()

    with monkeypatch.context() as patch:
        patch.setattr(Refresher, "refresh", given_up)
        next(stream)
        assert ended.wait(30)
    assert not finished
    assert engine.generate(prompts()[0], method=scout(), max_new_tokens=14).metrics.refreshes == 3
    assert not engine._runtime._scheduler.has_work


def test_a_chunk_that_cannot_be_read_again_ends_the_refreshes_only(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def damaged(*_: object) -> None:
        raise DamagedChunkError("cut short")

    monkeypatch.setattr(Refresher, "_exchange", damaged)
    expected = engine.generate(prompts()[0], method=scout(refresh_tokens=None), max_new_tokens=14).token_ids
    result = engine.generate(prompts()[0], method=scout(), max_new_tokens=14)
    assert result.token_ids == expected
    assert result.metrics.refreshes == 0
    assert caplog.text.count("not refreshed any more") == 1


@pytest.mark.parametrize("options", [{"family": "gemma3"}, {"storage": "index"}], ids=str)
def test_where_dropped_tokens_cannot_come_back_refreshes_are_refused(
    make_engine: MakeEngine, options: dict[str, Any]
) -> None:
    engine = make_engine(**options)
    with pytest.raises(ConfigurationError, match="refresh_tokens"):
        engine.generate(tiny.rag_prompt(CHUNKS), method=scout())
    assert engine.generate(tiny.rag_prompt(CHUNKS), method=scout(refresh_tokens=None), max_new_tokens=2)
    with pytest.raises(ConfigurationError, match="refresh_tokens"):
        make_engine(**options, method=scout())
