"""Chunks stored as an index: a fraction of the bytes, with the answers of full storage over the same anchors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.synthetic import SHAPES
from samkv_rag.chunk_cache import ChunkShape, SummarySpec, index_anchors, score_layers
from samkv_rag.exceptions import ConfigurationError, StoreFullError
from samkv_rag.prefill import PrefillMethod, method_classes
from samkv_rag.store.base import read_bytes
from support import tiny
from support.crafting import INDEX, cache, encoded, read, verify
from support.engines import MakeEngine

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 40), (2, 65), (3, 12))]
PROMPT = tiny.rag_prompt(CHUNKS)


@pytest.mark.parametrize(("kv_dtype", "tolerance"), [("float32", 0.0), ("bfloat16", 0.02), ("int8", 0.04)])
@pytest.mark.parametrize("num_tokens", [1, 3, 5, 70, 200])
def test_an_index_returns_what_it_stores(kv_dtype: str, tolerance: float, num_tokens: int) -> None:
    original, chunk = cache(INDEX, num_tokens), read(encoded(kv_dtype, INDEX, num_tokens))
    verify(chunk, INDEX, list(range(num_tokens)))
    anchors, scored = index_anchors(num_tokens), score_layers(6)
    for layer in range(scored.stop):
        expected = original.layer(layer, anchors)
        torch.testing.assert_close(chunk.layer(layer, anchors), expected, atol=tolerance, rtol=0)
    for layer in scored:
        keys = torch.full((2, num_tokens, 16), torch.nan)
        chunk.fill_layer(layer, keys, None)
        torch.testing.assert_close(keys, original.keys[layer], atol=tolerance, rtol=0)
    torch.testing.assert_close(chunk.layer_values(1), original.values[1], atol=tolerance, rtol=0)


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_an_index_holds_all_of_a_chunk_of_anchors_alone(num_tokens: int) -> None:
    original, chunk = cache(INDEX, num_tokens), read(encoded("float32", INDEX, num_tokens))
    for layer in range(score_layers(6).stop):
        keys, values = torch.empty(2, 2, num_tokens, 16)
        chunk.fill_layer(layer, keys, values)
        torch.testing.assert_close((keys, values), (original.keys[layer], original.values[layer]))


def test_an_index_refuses_to_read_what_it_does_not_store() -> None:
    chunk, scored, keys = read(encoded("int8", INDEX)), score_layers(6), torch.empty(2, 70, 16)
    for lacking in (
        lambda: chunk.layer(0),
        lambda: chunk.layer(0, torch.arange(8)),
        lambda: chunk.layer(scored.stop, index_anchors(70)),
        lambda: chunk.rows(range(6), index_anchors(70)),
        lambda: chunk.fill_layer(scored.start, keys, keys),
        lambda: chunk.fill_layer(scored.start - 1, keys, None),
        lambda: chunk.fill_layer(scored.stop, keys, None),
    ):
        with pytest.raises(LookupError):
            lacking()


@pytest.mark.parametrize("num_tokens", [1, 2, 4, 5, 39, 44, 165, 500])
def test_anchors_are_a_tenth_and_rise(num_tokens: int) -> None:
    anchors = index_anchors(num_tokens).tolist()
    assert anchors == sorted(set(anchors))
    assert anchors[:4] == list(range(min(4, num_tokens)))
    assert anchors[-1] < num_tokens
    assert len(anchors) == max(min(4, num_tokens), round(num_tokens / 10))


@pytest.mark.parametrize(("name", "most"), [("qwen2.5-0.5b", 0.25), ("llama-3.1-8b", 0.15)])
def test_an_index_takes_a_fraction_of_full_bfloat16(name: str, most: float) -> None:
    config = SHAPES[name]
    layers, heads, kv_heads = (config[f"num_{of}"] for of in ("hidden_layers", "attention_heads", "key_value_heads"))
    full = ChunkShape(
        layers, heads, kv_heads, config["hidden_size"] // heads, 512, torch.bfloat16, SummarySpec(4, 4, 16)
    )
    index = replace(full, spec=SummarySpec(4, 4, 16, storage="index"))
    assert len(encoded("auto", index, 165)) <= most * len(encoded("bfloat16", full, 165))


# In the engine


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_index_selects_like_full_storage_over_the_same_anchors(
    make_engine: MakeEngine, family: str, tmp_path: Path
) -> None:
    results = []
    for storage in ("full", "index"):
        engine = make_engine(family, store=tmp_path / storage, storage=storage, chunks=CHUNKS)
        results.append(engine.generate(PROMPT, max_new_tokens=1, method=tiny.method(scouted="anchors")))
    full, index = results
    assert index.metrics.chunks_hit == len(CHUNKS)
    assert [use.retained_tokens for use in index.chunks] == [use.retained_tokens for use in full.chunks]
    for ours, theirs in zip(index.chunks, full.chunks, strict=True):
        assert [b.score for b in ours.blocks] == pytest.approx([b.score for b in theirs.blocks], rel=1e-4)


def test_scouting_over_all_tokens_as_anchors_is_scouting_over_all(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samkv_rag.prefill.scout.index_anchors", torch.arange)
    engine = make_engine(chunks=CHUNKS)
    over_all, over_anchors = (
        [block.score for use in engine.generate(PROMPT, max_new_tokens=1, method=method).chunks for block in use.blocks]
        for method in (tiny.method(), tiny.method(scouted="anchors"))
    )
    assert over_anchors == pytest.approx(over_all, rel=1e-4)


@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_first_and_later_answers_are_equal(make_engine: MakeEngine, kv_dtype: str) -> None:
    engine = make_engine(storage="index", kv_dtype=kv_dtype)
    engine.announce(CHUNKS)
    first, second = (engine.generate_scored(PROMPT, " the tide", max_new_tokens=8) for _ in range(2))
    assert (first.metrics.chunks_missed, second.metrics.chunks_hit) == (3, 3)
    assert (first.token_ids, first.reference_nll) == (second.token_ids, second.reference_nll)


def test_scouting_over_anchors_reads_less_of_full_storage(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samkv_rag.store.codec._PAGE_BYTES", 1)  # a tiny model's tokens share pages
    long = [tiny.text(seed, 300) for seed in range(2)]
    engine, prompt = make_engine(store=tmp_path, chunks=long), tiny.rag_prompt(long)
    first, over_all, over_anchors = (
        engine.generate(prompt, max_new_tokens=1, method=tiny.method(scouted=scouted)).metrics.bytes_read
        for scouted in ("all", "all", "anchors")
    )
    assert over_anchors < 0.6 * over_all
    assert first == over_all < 0.9 * sum(found.num_bytes for found in engine.store.keys())  # checks read no more


REFUSED: list[PrefillMethod] = [
    *(cls() for name, cls in method_classes().items() if name not in ("scout", "full_prefill")),
    tiny.method(recompute=False),
    tiny.method(recompute_ratio=0.05),
    tiny.method(recompute_view="all"),
    tiny.method(update="fusion"),
    tiny.method(score_layers=(0.4, 0.8)),
    tiny.method(scouted="all"),
]


@pytest.mark.parametrize("method", REFUSED, ids=tiny.method_id)
def test_a_method_that_needs_more_is_refused(make_engine: MakeEngine, method: PrefillMethod) -> None:
    engine = make_engine(storage="index")
    with pytest.raises(ConfigurationError, match="open the engine with storage='full'"):
        engine.generate(PROMPT, method=method)
    with pytest.raises(ConfigurationError, match="open the engine with storage='full'"):
        make_engine(storage="index", method=method)


def test_a_chunk_of_another_storage_is_computed_anew(make_engine: MakeEngine, tmp_path: Path) -> None:
    make_engine(store=tmp_path, storage="index").add_chunks(CHUNKS)
    engine = make_engine(store=tmp_path)
    assert engine.add_chunks(CHUNKS).num_added == len(CHUNKS)


def test_a_damaged_index_is_a_miss_and_mended(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(store=tmp_path, storage="index", chunks=CHUNKS)
    expected = engine.generate(PROMPT, max_new_tokens=8)
    stored = sum(found.num_bytes for found in engine.store.keys())
    assert engine.generate(PROMPT, max_new_tokens=1, method="full_prefill").metrics.bytes_read == 0
    assert stored <= expected.metrics.bytes_read <= stored + len(CHUNKS) * 16384  # all of it, once
    key = next(engine.store.keys()).key
    blob = engine.store.get(key)
    assert blob is not None
    engine.store.put(key, bytes(read_bytes(blob))[:-100] + bytes(100))
    with pytest.warns(UserWarning, match="cannot be trusted"):
        result = engine.generate(PROMPT, max_new_tokens=8)
    assert (result.metrics.chunks_missed, result.token_ids) == (1, expected.token_ids)
    assert engine.generate(PROMPT, max_new_tokens=8).metrics.chunks_hit == len(CHUNKS)


@pytest.mark.parametrize("storage", ["full", "index"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "float32"])
def test_estimates_are_close_to_what_is_stored(make_engine: MakeEngine, storage: str, kv_dtype: str) -> None:
    engine = make_engine(storage=storage, kv_dtype=kv_dtype)
    estimate = engine.estimate_chunks([*CHUNKS, CHUNKS[0], "short"])
    assert list(engine.store.keys()) == []
    with pytest.raises(StoreFullError, match=r"3 new chunks of .* tokens would take about .* bytes, the limit is"):
        engine.add_chunks(CHUNKS, max_bytes=estimate.num_bytes - 1)
    assert list(engine.store.keys()) == []
    report = engine.add_chunks(CHUNKS, max_bytes=estimate.num_bytes)
    stored = sum(found.num_bytes for found in engine.store.keys())
    assert report.num_bytes == stored == pytest.approx(estimate.num_bytes, rel=0.03)
    assert (estimate.num_chunks, estimate.num_tokens) == (3, report.num_tokens)
    assert estimate.bytes_per_token == estimate.num_bytes / report.num_tokens
    again = engine.estimate_chunks(CHUNKS)
    assert (again.num_chunks, again.num_bytes, again.bytes_per_token) == (0, 0, 0.0)


def test_a_chunk_is_stored_at_its_second_use(make_engine: MakeEngine) -> None:
    engine = make_engine(admit="second_use")
    engine.announce(CHUNKS)
    results = [engine.generate(PROMPT, max_new_tokens=4) for _ in range(3)]
    assert [result.metrics.chunks_hit for result in results] == [0, 0, 3]
    assert len({result.token_ids for result in results}) == 1
    assert engine.add_chunks([tiny.text(9)]).num_added == 1
    assert engine.has_chunk(tiny.text(9))
