"""Refreshes: the retained tokens follow the answer, within a hard budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, DamagedChunkError
from samkv_rag.model.attention import Attend, LayerSpec, Visibility, causal_attention
from samkv_rag.model.decoder import CausalPass
from samkv_rag.prefill import Scout, SparsePrefill
from samkv_rag.runtime.refreshing import Refresher
from support import tiny
from support.engines import MakeEngine, prefill

CHUNKS = [tiny.text(seed, 80) for seed in range(5)]
ANSWER = [7, 301, 45, 12, 222, 90, 411, 18, 77, 150, 33, 260]


@pytest.fixture
def engine(make_engine: MakeEngine) -> SamKVEngine:
    return make_engine(chunks=CHUNKS)


class Written:
    """A prefilled prompt and its answer, with all but the last token in the buffer."""

    def __init__(
        self, engine: SamKVEngine, method: SparsePrefill, answer: list[int] = ANSWER, every: int = len(ANSWER)
    ) -> None:
        self.decoder = engine.decoder
        self.prefilled, self.layout, _, self.buffer = prefill(engine, method, tiny.rag_prompt(CHUNKS))
        self.num_retained = len(self.buffer.positions)
        self.refresher = Refresher(self.decoder, method, self.layout, self.prefilled, self.buffer, every)
        positions = self.layout.num_tokens + torch.arange(len(answer) - 1)
        hidden = self.decoder.embed(torch.tensor([answer[:-1]]))
        self.decoder.run_layers(hidden, positions, CausalPass(self.buffer, positions))

    def run(self, *answer_ids: int) -> None:
        """Run the last token of the answer; it selects, after what the last one selected has come in."""
        rows = self.refresher.rows(answer_ids, 1, 0)
        self.decoder.run_layers(self.decoder.embed(rows.token_ids[None]), rows.position_ids, rows.attend)

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        pairs = [self.buffer.layer(layer) for layer in range(self.decoder.num_layers)]
        return [(keys.clone(), values.clone()) for keys, values in pairs]

    def cached(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the whole prompt's cached keys and values, each ``[1, kv_heads, tokens, head_dim]``."""
        held = self.buffer.layer(layer)[0]
        whole = torch.zeros(2, 1, held.shape[1], self.layout.num_tokens, held.shape[3])
        for segment in self.layout.cached:
            assert segment.reader is not None
            whole[:, 0, :, segment.span] = torch.stack(segment.reader.layer(layer))
        return self.decoder.rotation_by(self.layout.rotate_offsets)[layer](whole[0]), whole[1]


def scout(**options: Any) -> Scout:
    return Scout(**{"min_chunk_tokens": 0, "sequence_ratio": 0.3, "refresh_tokens": 4} | options)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["scout", "samkv"])
def test_blocks_come_in_as_cached_and_the_layers_above_see_them(engine: SamKVEngine, name: str) -> None:
    method = tiny.method(name, sequence_ratio=0.3, refresh_tokens=4, revise_tokens=0)
    assert isinstance(method, SparsePrefill)
    written = Written(engine, method)
    before, num_layers = written.buffer.copy(), written.decoder.num_layers
    written.run(*ANSWER)
    after = written.buffer.copy()
    written.run(*ANSWER, 99)
    ((_, arrived),) = written.refresher.arrivals
    changed = (before.layer(0)[0] != after.layer(0)[0][:, :, :-1]).any(-1).any(1)[0].nonzero()[:, 0]
    assert 0 < len(arrived) == len(changed) < written.num_retained
    assert written.layout.is_chunk[written.prefilled.retained.nonzero()[changed, 0]].all()
    for layer in range(num_layers):
        for old, new, cached in zip(before.layer(layer), after.layer(layer), written.cached(layer), strict=True):
            torch.testing.assert_close(new[:, :, changed], cached[:, :, arrived], atol=1e-5, rtol=0)
            stays = torch.ones(old.shape[2], dtype=torch.bool).index_fill_(0, changed, False)
            assert torch.equal(new[:, :, :-1][:, :, stays], old[:, :, stays])
    position = torch.tensor([written.layout.num_tokens + len(ANSWER) - 1])
    hidden, found = written.decoder.embed(torch.tensor([ANSWER[-1:]])), [after.layer(i) for i in range(num_layers)]
    last_selecting = written.refresher.layers[-1]
    assert last_selecting < num_layers - 1
    after.drop_last(1)
    for buffer, layers in ((before, range(last_selecting + 1)), (after, range(last_selecting + 1, num_layers))):
        hidden = written.decoder.run_layers(hidden, position, CausalPass(buffer, position), layers)
        for layer in layers:
            for own, expected in zip(found[layer], buffer.layer(layer), strict=True):
                torch.testing.assert_close(own[:, :, -1], expected[:, :, -1], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_from_an_index_blocks_come_in_computed_in_view_of_what_stays_and_the_next_token_sees_them(
    make_engine: MakeEngine,
) -> None:
    written, answer = Written(make_engine(chunks=CHUNKS, storage="index"), scout(revise_tokens=0), every=100), ANSWER
    decoder, places = written.decoder, written.prefilled.retained.nonzero()[:, 0]
    written.run(*answer)
    assert not written.refresher.arrivals
    for token_id in (99, 5):
        before, answer = written.layers(), [*answer, token_id]
        written.run(*answer)
        arrived = written.refresher.arrivals[-1][1]
        assert 0 < len(arrived) <= min(64, written.num_retained - 1)
        assert not torch.isin(arrived, places).any()
        assert written.layout.is_chunk[arrived].all()
        assert len(written.buffer.positions) == written.num_retained + len(answer)
        changed = (before[0][0] != written.layers()[0][0][:, :, : before[0][0].shape[2]]).any(-1).any(1)[0].nonzero()
        assert written.layout.is_chunk[places[changed[:, 0]]].all()
        places[changed[:, 0]] = arrived
        new_position = torch.tensor([written.layout.num_tokens + len(answer) - 1])
        order, hidden = places.argsort(), decoder.embed(written.layout.token_ids[None, arrived])
        new_hidden = decoder.embed(torch.tensor([[token_id]]))
        for layer, (old, new) in enumerate(zip(before, written.layers(), strict=True)):
            for found, expected in zip(new, decoder.project(hidden, arrived, layer), strict=True):
                torch.testing.assert_close(found[:, :, changed[:, 0]], expected, atol=1e-5, rtol=0)
            for found, expected in zip(new, decoder.project(new_hidden, new_position, layer), strict=True):
                torch.testing.assert_close(found[:, :, -1:], expected, atol=1e-5, rtol=0)
            stays = torch.ones(old[0].shape[2], dtype=torch.bool).index_fill_(0, changed[:, 0], False)
            assert torch.equal(new[0][:, :, : len(stays)][:, :, stays], old[0][:, :, stays])
            keys, values = (states[:, :, : len(places)][:, :, order] for states in new)
            attend = _over(keys, values, Visibility(arrived, places[order]))
            hidden = decoder.run_layers(hidden, arrived, attend, [layer])
            seen = Visibility(new_position, new_position - torch.arange(new[0].shape[2]).flip(0))
            new_hidden = decoder.run_layers(new_hidden, new_position, _over(*new, seen), [layer])


def _over(keys: torch.Tensor, values: torch.Tensor, seen: Visibility) -> Attend:
    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec) -> Any:
        return causal_attention(query, keys, values, spec, seen)

    return attend


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"recompute_view": "all"}, {"recompute": False}], ids=str)
def test_a_refresh_adds_what_question_and_newest_token_attend_to(engine: SamKVEngine, options: dict[str, Any]) -> None:
    """Compare with the plain way: the token's queries on all keys of the prompt and of the answer."""
    answer = ANSWER[:2]
    by_token = {"score_layers": (0.5, 1.0), "sentence_credit": 0.0, "block_tokens": 1, "block_top_tokens": 1}
    written = Written(engine, scout(**by_token, **options), answer)
    layout, decoder, held = written.layout, written.decoder, written.prefilled.retained
    paid = torch.zeros(layout.num_tokens)
    positions = torch.tensor([layout.num_tokens + len(answer) - 1])
    buffer = written.buffer.copy()
    attend = CausalPass(buffer, positions)

    def watch(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
        output = attend(layer, query, key, value, spec)
        if layer in written.refresher.layers:
            own = buffer.layer(layer)[0]
            whole = written.cached(layer)[0]
            whole[:, :, held] = own[:, :, : written.num_retained]
            keys = torch.cat((whole, own[:, :, written.num_retained :]), dim=2)
            keys = keys.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            weights = (query @ keys.transpose(-1, -2) * spec.scaling).softmax(-1)
            paid.add_(weights[0, :, 0, : layout.num_tokens].sum(0))
        return output

    decoder.run_layers(decoder.embed(torch.tensor([answer[-1:]])), positions, watch)
    written.run(*answer)
    written.run(*answer, 99)
    assert written.prefilled.block_scores is not None
    blocks, asked = written.prefilled.block_scores
    middle = blocks.positions
    both = 0.75 * paid[middle] / paid[middle].sum() + 0.25 * asked / asked.sum()  # 0.5 a token
    best = middle[both.topk(int(held[middle].sum())).indices]
    assert set(written.refresher.arrivals[0][1].tolist()) == set(best.tolist()) - set(held.nonzero()[:, 0].tolist())


@torch.inference_mode()
def test_revised_tokens_have_the_kv_of_decoding_over_what_is_retained_now(engine: SamKVEngine) -> None:
    written = Written(engine, scout(score_layers=(0.0, 0.1), revise_tokens=len(ANSWER)))
    written.run(*ANSWER)
    stale = written.layers()
    written.run(*ANSWER, 99)
    assert len(written.refresher.arrivals[0][1])
    positions = written.layout.num_tokens + torch.arange(len(ANSWER) + 1)
    expected = written.buffer.copy()
    expected.drop_last(len(positions))
    hidden = written.decoder.embed(torch.tensor([[*ANSWER, 99]]))
    written.decoder.run_layers(hidden, positions, CausalPass(expected, positions))
    for layer, (keys, values) in enumerate(written.layers()):
        torch.testing.assert_close((keys, values), expected.layer(layer), atol=1e-4, rtol=0)
    changed = (stale[-1][0] - keys[:, :, :-1]).abs().amax((0, 1, 3))[written.num_retained :]
    assert (changed > 1e-3).all(), "nothing was revised"


@torch.inference_mode()
def test_with_no_tokens_to_revise_the_answer_keeps_its_kv(engine: SamKVEngine) -> None:
    written = Written(engine, scout(score_layers=(0.0, 0.1), revise_tokens=0))
    written.run(*ANSWER)
    before = [
        (keys[:, :, written.num_retained :], values[:, :, written.num_retained :]) for keys, values in written.layers()
    ]
    written.run(*ANSWER, 99)
    assert len(written.refresher.arrivals[0][1]), "nothing came in"
    for (keys, values), (own_keys, own_values) in zip(written.layers(), before, strict=True):
        assert torch.equal(keys[:, :, written.num_retained : -1], own_keys)
        assert torch.equal(values[:, :, written.num_retained : -1], own_values)


# -- in the runtime ------------------------------------------------------------------------------


def prompts() -> list[str]:
    return [tiny.rag_prompt(CHUNKS[i:] + CHUNKS[:i], f"Question number {i} of the tide?") for i in range(5)]


def test_refreshes_are_counted_and_explained(engine: SamKVEngine) -> None:
    ids = iter([*ANSWER, 5, 6])
    result = engine.generate(prompts()[0], method=scout(), max_new_tokens=14, choose=lambda logits: next(ids))
    assert result.token_ids == (*ANSWER, 5, 6)
    metrics = result.metrics
    assert metrics.refreshes == 6  # by tokens 1 to 4, 8 and 12
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


@pytest.mark.parametrize("step", ["_select", "_take_cached"])
@pytest.mark.parametrize("error", [DamagedChunkError("cut short"), MemoryError("none left")], ids=repr)
def test_an_error_ends_the_refreshes_only(
    engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, step: str
) -> None:
    def damaged(*_: object) -> None:
        raise error

    monkeypatch.setattr(Refresher, step, damaged)
    expected = engine.generate(prompts()[0], method=scout(refresh_tokens=None), max_new_tokens=14).token_ids
    result = engine.generate(prompts()[0], method=scout(), max_new_tokens=14)
    assert result.token_ids == expected
    assert result.metrics.refreshes == 0
    assert caplog.text.count("not refreshed any more") == 1


def test_an_index_refreshes(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(store=tmp_path, chunks=CHUNKS, storage="index")
    result = engine.generate(prompts()[0], method=scout(), max_new_tokens=14)
    assert result.metrics.refreshes == 6
    assert result.metrics.refresh_bytes_read == 0  # scouting has read all of it
    assert any(use.arrivals for use in result.chunks)


def test_with_windows_refreshes_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(family="gemma3")
    with pytest.raises(ConfigurationError, match="refresh_tokens"):
        engine.generate(tiny.rag_prompt(CHUNKS), method=scout())
    assert engine.generate(tiny.rag_prompt(CHUNKS), method=scout(refresh_tokens=None), max_new_tokens=2)
    with pytest.raises(ConfigurationError, match="refresh_tokens"):
        make_engine(family="gemma3", method=scout())
