"""CacheBlend, EPIC and ProphetKV: exact where they recompute everything, and what they are said to recompute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.model.decoder import CausalPass
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Clock, PrefillContext, Prefilled
from samkv_rag.prefill.cacheblend import CHECK_LAYER
from samkv_rag.prefill.epic import chunk_beginnings
from samkv_rag.prompt.layout import PromptLayout
from support import tiny

MakeEngine = Callable[..., SamKVEngine]
CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 40), (2, 65), (3, 12))]
PROMPT = tiny.rag_prompt(CHUNKS)
RIVALS = ["cacheblend", "epic", "prophetkv"]


def layout_of(engine: SamKVEngine, prompt: str = PROMPT) -> PromptLayout:
    return engine._assembler.with_cache(engine._assembler.split(prompt))


def prefill(
    engine: SamKVEngine, method: str, prompt: str = PROMPT, **options: Any
) -> tuple[Prefilled, torch.Tensor, KVBuffer]:
    """What the method returned, logits ``[vocab]`` of the first answer token, the cache to decode from."""
    chosen = tiny.method(method, **options)
    buffer = KVBuffer(engine.decoder.num_layers)
    with torch.inference_mode():
        context = PrefillContext(engine.decoder, layout_of(engine, prompt), buffer, engine._spec, Clock())
        prefilled = chosen.prefill(context)
        return prefilled, engine.decoder.logits(prefilled.hidden)[0, -1], buffer


def full_kv(engine: SamKVEngine, layout: PromptLayout) -> KVBuffer:
    """KV of a full prefill."""
    buffer = KVBuffer(engine.decoder.num_layers)
    with torch.inference_mode():
        hidden = engine.decoder.embed(layout.token_ids[None])
        engine.decoder.run_layers(hidden, torch.arange(layout.num_tokens), CausalPass(buffer))
    return buffer


@pytest.mark.parametrize("prompt", [PROMPT, "\n\n".join(CHUNKS) + "\n\nAnswer:"], ids=["behind text", "chunk first"])
@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_recomputing_everything_equals_full_prefill(
    make_engine: MakeEngine, family: str, method: str, prompt: str
) -> None:
    engine = make_engine(family)
    engine.add_chunks(CHUNKS)
    _, expected, full = prefill(engine, "full_prefill", prompt)
    _, found, kept = prefill(engine, method, prompt, recompute_ratio=1.0)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for layer in range(engine.decoder.num_layers):
        for ours, theirs in zip(kept.layer(layer), full.layer(layer), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", RIVALS)
def test_a_share_recomputed_lies_between_none_and_all(make_engine: MakeEngine, method: str) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    expected = prefill(engine, "full_prefill")[1]
    errors = [
        float((prefill(engine, method, recompute_ratio=ratio)[1] - expected).norm()) for ratio in (1e-6, 0.3, 1.0)
    ]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.333, 0.9])
@pytest.mark.parametrize("method", RIVALS)
def test_all_is_kept_and_the_share_recomputed_is_a_hard_cap(make_engine: MakeEngine, method: str, ratio: float) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    layout = layout_of(engine)
    prefilled, _, buffer = prefill(engine, method, recompute_ratio=ratio)
    assert bool(prefilled.retained.all())
    assert buffer.cache_length == layout.num_tokens
    assert not bool((prefilled.recomputed & ~layout.is_chunk).any())
    budget = int(ratio * layout.num_chunk_tokens)
    unused = budget - int(prefilled.recomputed.sum())
    assert 0 <= unused < (len(CHUNKS) if method == "epic" else 1)


def test_cacheblend_recomputes_the_tokens_that_deviate_most(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    layout = layout_of(engine)
    fresh, cached = full_kv(engine, layout).layer(CHECK_LAYER), prefill(engine, "naive_reuse")[2]
    stale = cached.layer(CHECK_LAYER)
    deviation = {
        position: sum(
            float((a[0, :, position] - b[0, :, position]).square().sum()) for a, b in zip(fresh, stale, strict=True)
        )
        for position in range(layout.num_tokens)
        if layout.is_chunk[position]
    }
    budget = int(0.15 * layout.num_chunk_tokens)
    expected = sorted(sorted(deviation, key=lambda position: -deviation[position])[:budget])
    found = prefill(engine, "cacheblend", recompute_ratio=0.15)[0].recomputed
    assert found.nonzero()[:, 0].tolist() == expected


def test_cacheblend_keeps_fresh_kv_up_to_its_check_layer_and_cached_kv_above(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    layout = layout_of(engine)
    exact, stale = full_kv(engine, layout), prefill(engine, "naive_reuse")[2]
    prefilled, _, found = prefill(engine, "cacheblend", recompute_ratio=0.15)
    untouched = layout.is_chunk & ~prefilled.recomputed
    for layer in range(engine.decoder.num_layers):
        expected = exact if layer <= CHECK_LAYER else stale
        for ours, theirs in zip(found.layer(layer), expected.layer(layer), strict=True):
            torch.testing.assert_close(ours[:, :, untouched], theirs[:, :, untouched], atol=1e-4, rtol=0)
            if layer > CHECK_LAYER:
                assert not torch.allclose(ours[:, :, prefilled.recomputed], theirs[:, :, prefilled.recomputed])


def test_epic_recomputes_the_same_number_of_first_tokens_in_every_chunk(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    layout = layout_of(engine)
    recomputed = chunk_beginnings(layout, 0.6)
    counts = [int(recomputed[segment.span].sum()) for segment in layout.chunks]
    lengths = [segment.stop - segment.start for segment in layout.chunks]
    budget = int(0.6 * sum(lengths))
    k = max(k for k in range(max(lengths) + 1) if sum(min(k, length) for length in lengths) <= budget)
    assert counts == [min(k, length) for length in lengths]
    assert counts[2] == lengths[2] < k, "the short chunk is to be recomputed whole"
    for segment, count in zip(layout.chunks, counts, strict=True):
        assert bool(recomputed[segment.start : segment.start + count].all())


def test_epic_spares_a_chunk_that_begins_the_prompt(make_engine: MakeEngine) -> None:
    engine = make_engine("qwen2")
    engine.add_chunks(CHUNKS)
    layout = layout_of(engine, "\n\n".join(CHUNKS) + "\n\nAnswer:")
    recomputed = chunk_beginnings(layout, 0.15)
    first, *others = layout.chunks
    assert first.start == 0
    assert not bool(recomputed[first.span].any())
    assert all(bool(recomputed[segment.start]) for segment in others)
    assert int(recomputed.sum()) <= int(0.15 * layout.num_chunk_tokens)


def test_prophetkv_recomputes_the_tokens_that_the_question_attends_to_most(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    layout = layout_of(engine)
    received = attention_of_the_question(layout)
    chunk_positions = layout.is_chunk.nonzero()[:, 0].tolist()
    budget = int(0.15 * layout.num_chunk_tokens)
    expected = sorted(sorted(chunk_positions, key=lambda position: -received[position])[:budget])
    found = prefill(engine, "prophetkv", recompute_ratio=0.15)[0].recomputed
    assert found.nonzero()[:, 0].tolist() == expected


def attention_of_the_question(layout: PromptLayout) -> list[float]:
    """Mean attention that each position gets from the prompt's tail, from transformers' own forward pass in which
    chunks see themselves alone."""
    position = torch.arange(layout.num_tokens)
    causal = position[None, :] <= position[:, None]
    same_chunk = layout.chunk_number[:, None] == layout.chunk_number[None, :]
    seen = causal & (~layout.is_chunk[:, None] | same_chunk)
    additive = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
    model = tiny.model()
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        attentions = model(
            layout.token_ids[None], attention_mask=additive[None, None], output_attentions=True
        ).attentions
    return torch.stack(attentions)[:, 0, :, layout.tail].mean((0, 1, 2)).tolist()


@pytest.mark.parametrize("method", RIVALS)
def test_chunks_from_disk_answer_as_chunks_in_memory(make_engine: MakeEngine, method: str, tmp_path: Path) -> None:
    make_engine(store=tmp_path).add_chunks(CHUNKS)
    in_memory = make_engine()
    in_memory.add_chunks(CHUNKS)
    found = make_engine(store=tmp_path).generate(PROMPT, max_new_tokens=6, method=tiny.method(method))
    expected = in_memory.generate(PROMPT, max_new_tokens=6, method=tiny.method(method))
    assert found.token_ids == expected.token_ids
    assert (found.metrics.chunks_hit, found.metrics.method) == (3, method)
    assert found.metrics.sequence_ratio == 1.0
    assert 0.1 < found.metrics.recompute_ratio <= 0.15
