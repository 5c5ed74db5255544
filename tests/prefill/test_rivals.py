"""CacheBlend, EPIC and ProphetKV recompute the tokens that their papers say."""

from __future__ import annotations

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.prefill.cacheblend import CHECK_LAYER
from samkv_rag.prefill.epic import chunk_beginnings
from samkv_rag.prompt.layout import PromptLayout
from support import tiny
from support.engines import MakeEngine, Prefill, attention_of_tail, layout_of
from support.engines import prefill as prefill_by

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 40), (2, 65), (3, 12))]
PROMPT = tiny.rag_prompt(CHUNKS)
RIVALS = ["cacheblend", "epic", "prophetkv"]


@pytest.fixture
def engine(make_engine: MakeEngine) -> SamKVEngine:
    return make_engine(chunks=CHUNKS, preamble="")


def prefill(engine: SamKVEngine, name: str, **options: float) -> Prefill:
    return prefill_by(engine, tiny.method(name, **options), PROMPT)


@pytest.mark.parametrize("method", RIVALS)
def test_a_share_recomputed_lies_between_none_and_all(engine: SamKVEngine, method: str) -> None:
    expected = prefill(engine, "full_prefill").logits
    found = (prefill(engine, method, recompute_ratio=ratio).logits for ratio in (1e-6, 0.3, 1.0))
    errors = [float((logits - expected).norm()) for logits in found]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.333, 0.9])
@pytest.mark.parametrize("method", RIVALS)
def test_all_is_kept_and_the_share_recomputed_is_a_hard_cap(engine: SamKVEngine, method: str, ratio: float) -> None:
    prefilled, layout, _, kv = prefill(engine, method, recompute_ratio=ratio)
    assert bool(prefilled.retained.all())
    assert len(kv.positions) == layout.num_tokens
    assert not bool((prefilled.recomputed & ~layout.is_chunk).any())
    budget = int(ratio * layout.num_chunk_tokens)
    unused = budget - int(prefilled.recomputed.sum())
    assert 0 <= unused < (len(CHUNKS) if method == "epic" else 1)


def most(received: torch.Tensor, layout: PromptLayout) -> list[int]:
    """Return the chunk positions that received most, for a budget of 0.15."""
    of_chunks = sorted(layout.is_chunk.nonzero()[:, 0].tolist(), key=lambda position: -float(received[position]))
    return sorted(of_chunks[: int(0.15 * layout.num_chunk_tokens)])


@pytest.mark.parametrize("preamble", ["", None])
def test_cacheblend_recomputes_the_tokens_that_deviate_most(make_engine: MakeEngine, preamble: str | None) -> None:
    engine = make_engine(chunks=CHUNKS, preamble=preamble)
    fresh, stale = (prefill(engine, name).kv.layer(CHECK_LAYER) for name in ("full_prefill", "naive_reuse"))
    deviation = sum((a - b)[0].square().sum((0, 2)) for a, b in zip(fresh, stale, strict=True))
    prefilled, layout, *_ = prefill(engine, "cacheblend", recompute_ratio=0.15)
    assert prefilled.recomputed.nonzero()[:, 0].tolist() == most(deviation, layout)


def test_prophetkv_recomputes_the_tokens_that_the_question_attends_to_most(engine: SamKVEngine) -> None:
    prefilled, layout, *_ = prefill(engine, "prophetkv", recompute_ratio=0.15)
    expected = most(attention_of_tail(layout).mean((0, 1, 2)), layout)
    assert prefilled.recomputed.nonzero()[:, 0].tolist() == expected


def test_cacheblend_keeps_fresh_kv_up_to_its_check_layer_and_cached_kv_above(engine: SamKVEngine) -> None:
    exact, stale = prefill(engine, "full_prefill").kv, prefill(engine, "naive_reuse").kv
    prefilled, layout, _, found = prefill(engine, "cacheblend", recompute_ratio=0.15)
    untouched = layout.is_chunk & ~prefilled.recomputed
    for layer in range(engine.decoder.num_layers):
        expected = exact if layer <= CHECK_LAYER else stale
        for ours, theirs in zip(found.layer(layer), expected.layer(layer), strict=True):
            torch.testing.assert_close(ours[:, :, untouched], theirs[:, :, untouched], atol=1e-4, rtol=0)
            if layer > CHECK_LAYER:
                assert not torch.allclose(ours[:, :, prefilled.recomputed], theirs[:, :, prefilled.recomputed])


def test_epic_recomputes_the_same_number_of_first_tokens_in_every_chunk(engine: SamKVEngine) -> None:
    layout = layout_of(engine, PROMPT)
    recomputed = chunk_beginnings(layout, 0.6)
    counts = [int(recomputed[segment.span].sum()) for segment in layout.chunks]
    lengths = [segment.num_tokens for segment in layout.chunks]
    budget = int(0.6 * sum(lengths))
    k = max(k for k in range(max(lengths) + 1) if sum(min(k, length) for length in lengths) <= budget)
    assert counts == [min(k, length) for length in lengths]
    assert counts[2] == lengths[2] < k, "the short chunk is to be recomputed whole"
    assert all(bool(recomputed[c.start : c.start + n].all()) for c, n in zip(layout.chunks, counts, strict=True))


def test_epic_spares_a_chunk_that_begins_the_prompt(make_engine: MakeEngine) -> None:
    layout = layout_of(make_engine("qwen2", chunks=CHUNKS, preamble=""), "\n\n".join(CHUNKS) + "\n\nAnswer:")
    recomputed = chunk_beginnings(layout, 0.15)
    first, *others = layout.chunks
    assert first.start == 0
    assert not bool(recomputed[first.span].any())
    assert all(bool(recomputed[segment.start]) for segment in others)
    assert int(recomputed.sum()) <= int(0.15 * layout.num_chunk_tokens)
