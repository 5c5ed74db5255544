"""Refreshes: the retained set follows the answer, at a hard budget."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samkv_rag import GenerationResult, SamKVEngine
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError
from samkv_rag.model.attention import LayerSpec
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import PrefillContext, Scout, SparsePrefill
from samkv_rag.prefill.base import Clock, Prefilled
from samkv_rag.prompt.layout import PromptLayout
from samkv_rag.runtime import worker
from samkv_rag.runtime.refreshing import Refresher
from samkv_rag.runtime.sequence import Sequence
from samkv_rag.runtime.step import step
from support import tiny

MakeEngine = Callable[..., SamKVEngine]
CHUNKS = [tiny.text(seed, 80) for seed in range(5)]
ANSWER = [7, 301, 45, 12, 222, 90, 411, 18, 77, 150, 33, 260]


@pytest.fixture
def engine(make_engine: MakeEngine) -> SamKVEngine:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    return engine


class Written:
    """A prompt prefilled and an answer written behind it, all but its last token in the buffer."""

    def __init__(self, engine: SamKVEngine, method: SparsePrefill) -> None:
        self.engine, self.decoder = engine, engine.decoder
        layout = engine._assembler.with_cache(engine._assembler.split(tiny.rag_prompt(CHUNKS)))
        self.buffer = KVBuffer(self.decoder.num_layers)
        context = PrefillContext(self.decoder, layout, self.buffer, engine._spec, Clock())
        self.prefilled: Prefilled = method.prefill(context)
        self.layout: PromptLayout = self.prefilled.layout or layout
        self.num_retained = self.buffer.cache_length
        self.refresher = Refresher(self.decoder, method, self.layout, self.prefilled, self.buffer)
        self.write(self.buffer)

    def write(self, buffer: KVBuffer) -> None:
        """Run the answer, but for its last token, over what ``buffer`` holds."""
        positions = self.layout.num_tokens + torch.arange(len(ANSWER) - 1)
        self.decoder.run_layers(
            self.decoder.embed(torch.tensor([ANSWER[:-1]])), positions, CausalPass(buffer, positions)
        )

    def refresh(self) -> None:
        self.refresher.refresh(ANSWER, 0)

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = [self.buffer.layer(layer) for layer in range(self.decoder.num_layers)]
        return [(keys.clone(), values.clone()) for keys, values in pairs]


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
        assert written.buffer.cache_length == written.num_retained + len(ANSWER) - 1
        for layer, (old, new) in enumerate(zip(before, written.layers(), strict=True)):
            changed = (old[0] != new[0]).any(-1).any(1)[0].nonzero()[:, 0]
            assert written.layout.is_chunk[places[changed]].all()
            rotate = written.decoder.rotation_by(written.layout.rotate_offsets)[layer]
            cached = torch.zeros(old[0].shape[1], written.layout.num_tokens, old[0].shape[3])
            for segment in written.layout.chunks:
                assert segment.reader is not None
                cached[:, segment.span] = segment.reader.layer(layer)[0]
            torch.testing.assert_close(new[0][0, :, changed], rotate(cached)[:, arrived], atol=1e-5, rtol=0)
        places[changed] = arrived


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"recompute_view": "all"}, {"recompute": False}], ids=str)
@pytest.mark.parametrize("first", [0, 5])
def test_what_comes_in_is_what_the_answer_attends_to(engine: SamKVEngine, options: dict[str, Any], first: int) -> None:
    """Beside the plain way: the answer from its token ``first`` on, run over all other tokens' KV in one buffer."""
    by_token = {"score_layers": (0.0, 0.5), "emphasis_weight": 0.0, "sentence_credit": 0.0}
    by_token |= {"block_tokens": 1, "block_top_tokens": 1}
    written = Written(engine, scout(**by_token, **options))
    layout, decoder = written.layout, written.decoder
    everything, held = KVBuffer(decoder.num_layers), written.prefilled.retained
    rotate = decoder.rotation_by(layout.rotate_offsets)
    for layer, pair in enumerate(written.layers()):
        both = []
        for which, states in enumerate(pair):
            whole = torch.zeros(1, states.shape[1], layout.num_tokens, states.shape[3])
            for segment in layout.cached:
                assert segment.reader is not None
                whole[0, :, segment.span] = segment.reader.layer(layer)[which]
            whole = rotate[layer](whole) if which == 0 else whole
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


def test_batched_equals_alone(engine: SamKVEngine) -> None:
    sampling = {"max_new_tokens": 14, "temperature": 1.0, "seed": 1}  # greedily, a tiny model repeats itself
    options: dict[str, Any] = {"method": scout(refresh_tokens=3), **sampling}

    async def together() -> list[GenerationResult]:
        return await asyncio.gather(*(engine.agenerate(prompt, **options) for prompt in prompts()))

    alone = [engine.generate(prompt, **options) for prompt in prompts()]
    batched = asyncio.run(together())
    assert [result.token_ids for result in batched] == [result.token_ids for result in alone]
    assert [result.chunks for result in batched] == [result.chunks for result in alone]
    fixed = [engine.generate(prompt, **options | {"method": scout(refresh_tokens=None)}) for prompt in prompts()]
    assert [result.token_ids for result in fixed] != [result.token_ids for result in alone], "nothing was refreshed"


def test_answers_of_one_prefill_are_refreshed_each_for_itself(engine: SamKVEngine) -> None:
    options: dict[str, Any] = {"method": scout(refresh_tokens=3), "max_new_tokens": 14, "temperature": 1.0}
    first = engine.generate(prompts()[0], seed=1, n=2, **options)
    (second,) = first.others
    alone = [engine.generate(prompts()[0], seed=seed, **options) for seed in (1, 2)]
    assert [first.token_ids, second.token_ids] == [result.token_ids for result in alone]
    assert [first.chunks, second.chunks] == [result.chunks for result in alone]
    assert first.chunks != second.chunks


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


def test_resident_kv_does_not_grow(engine: SamKVEngine) -> None:
    fixed, refreshed = (
        engine.generate(prompts()[0], method=scout(refresh_tokens=n), max_new_tokens=9).metrics for n in (None, 2)
    )
    assert refreshed.refreshes > 1
    assert refreshed.kv_bytes_resident == fixed.kv_bytes_resident


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

    async def both() -> None:
        tokens = (40, 60)  # the second is still answering when the first ends
        await asyncio.gather(
            *(engine.agenerate(p, method=scout(), max_new_tokens=n) for p, n in zip(prompts()[:2], tokens, strict=True))
        )

    asyncio.run(both())
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


def test_a_failing_choice_ends_its_own_answer_only(engine: SamKVEngine) -> None:
    def fail(logits: torch.Tensor) -> int:
        raise RuntimeError("no choice")

    async def both() -> tuple[Any, Any]:
        asked = (engine.agenerate(prompts()[0], max_new_tokens=9), engine.agenerate(prompts()[1], choose=fail))
        return await asyncio.gather(*asked, return_exceptions=True)

    answered, failed = asyncio.run(both())
    assert answered.token_ids == engine.generate(prompts()[0], max_new_tokens=9).token_ids
    assert isinstance(failed, RuntimeError)


@pytest.mark.parametrize(("name", "value"), [("refresh_tokens", 0), ("refresh_tokens", "x")])
def test_options_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        scout(**{name: value})


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
