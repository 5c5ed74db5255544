"""The method against the obvious slow path, on every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Clock, PrefillContext, PrefillMethod
from support import tiny

MakeEngine = Callable[..., SamKVEngine]
CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 40), (2, 65), (3, 12))]
PROMPT = tiny.rag_prompt(CHUNKS)


def context(engine: SamKVEngine, method: PrefillMethod) -> PrefillContext:
    """What ``method`` works on, for PROMPT."""
    prompt = engine._assembler.split(PROMPT)
    layout = engine._assembler.with_cache(prompt) if method.needs else engine._assembler.without_cache(prompt)
    return PrefillContext(engine.decoder, layout, KVBuffer(engine.decoder.num_layers), engine._spec, Clock())


def prefill(engine: SamKVEngine, name: str = "scout", **options: Any) -> tuple[torch.Tensor, KVBuffer]:
    """Logits ``[vocab]`` of the first answer token, and the cache to decode from."""
    method = tiny.method(name, **options)
    given = context(engine, method)
    with torch.inference_mode():
        prefilled = method.prefill(given)
        return engine.decoder.logits(prefilled.hidden)[0, -1], given.buffer


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_full_prefill_equals_the_models_own_forward(make_engine: MakeEngine, family: str) -> None:
    engine = make_engine(family)
    engine.add_chunks(CHUNKS)
    token_ids = engine._assembler.without_cache(engine._assembler.split(PROMPT)).token_ids
    with torch.inference_mode():
        expected = tiny.model(family)(token_ids[None]).logits[0, -1]
    torch.testing.assert_close(prefill(engine, "full_prefill")[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("view", ["all", "chunk", "retained"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keep_all_recompute_all_equals_full_prefill(make_engine: MakeEngine, family: str, view: str) -> None:
    engine = make_engine(family)
    engine.add_chunks(CHUNKS)
    expected, full = prefill(engine, "full_prefill")
    found, kept = prefill(engine, sequence_ratio=1.0, recompute_view=view)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for layer in range(engine.decoder.num_layers):
        for ours, theirs in zip(kept.layer(layer), full.layer(layer), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_stored_and_rotated_chunk_equals_a_direct_prefill_there(
    make_engine: MakeEngine, family: str, tmp_path: Path
) -> None:
    engine = make_engine(family, store=tmp_path)
    engine.add_chunks(CHUNKS[:1])
    ((reader, hit),) = engine._library.read(CHUNKS[:1])
    assert hit
    offset, decoder = 1000, engine.decoder
    cache = DirectCache()
    with torch.inference_mode():
        tiny.model(family)(
            reader.token_ids[None],
            position_ids=torch.arange(offset, offset + len(reader.token_ids))[None],
            past_key_values=cache,
        )
    rotate = decoder.rotation_by(torch.tensor([offset]))
    for layer in range(decoder.num_layers):
        keys, values = reader.layer(layer)
        torch.testing.assert_close(rotate(keys), cache.layers[layer].keys[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(values, cache.layers[layer].values[0], atol=1e-4, rtol=0)


def DirectCache() -> Any:
    """transformers' own cache: with one given, positions are not mistaken for packed sequences."""
    from transformers import DynamicCache

    return DynamicCache()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_naive_reuse_equals_a_forward_over_a_block_diagonal_mask(make_engine: MakeEngine, family: str) -> None:
    """Chunks see themselves and, through no one, each other; text sees everything before it."""
    engine = make_engine(family)
    engine.add_chunks(CHUNKS)
    layout = engine._assembler.with_cache(engine._assembler.split(PROMPT))
    position = torch.arange(layout.num_tokens)
    causal = position[None, :] <= position[:, None]
    same_chunk = layout.chunk_number[:, None] == layout.chunk_number[None, :]
    seen = causal & (~layout.is_chunk[:, None] | same_chunk)
    with torch.inference_mode():
        expected = tiny.model(family)(layout.token_ids[None], attention_mask=seen[None, None]).logits[0, -1]
    torch.testing.assert_close(prefill(engine, "naive_reuse")[0], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["scout", "samkv"])
@pytest.mark.parametrize("view", ["all", "chunk", "retained"])
def test_recomputation_equals_a_forward_over_the_mask_it_means(make_engine: MakeEngine, view: str, method: str) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    chosen = tiny.method(method, recompute_view=view, sequence_ratio=0.3)
    given = context(engine, chosen)
    with torch.inference_mode():
        prefilled = chosen.prefill(given)
        layout = prefilled.layout or given.layout
        found = engine.decoder.logits(prefilled.hidden)[0, -1]
        expected = slow_recomputation(layout, mask(layout, prefilled.retained, prefilled.recomputed, view))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def mask(layout: Any, kept: torch.Tensor, recomputed: torch.Tensor, view: str) -> torch.Tensor:
    """Who sees whom, ``[2·tokens, 2·tokens]``.

    Every prompt token stands there twice: the first copies are the cache (chunks see only
    themselves), the second are what is computed for this prompt.
    """
    n = layout.num_tokens
    position = torch.arange(n)
    causal = position[None, :] <= position[:, None]
    same_chunk = layout.chunk_number[:, None] == layout.chunk_number[None, :]
    chunk_rows, nobody = layout.is_chunk[:, None], torch.zeros(n, n, dtype=torch.bool)
    alone = causal & torch.where(chunk_rows, same_chunk, kept[None, :])
    computed = recomputed | layout.is_text
    wider = {"all": chunk_rows, "chunk": chunk_rows & same_chunk, "retained": nobody}[view]
    stale = causal & ~computed[None, :] & (kept[None, :] | wider)
    fresh = causal & computed[None, :]
    return torch.cat((torch.cat((alone, nobody), 1), torch.cat((stale, fresh), 1)))


def slow_recomputation(layout: Any, mask: torch.Tensor) -> torch.Tensor:
    """Logits ``[vocab]`` of the last token, from one dense forward over both copies of the prompt."""
    model = tiny.model()
    hidden = model.model.embed_tokens(layout.token_ids.repeat(2)[None])
    rotation = model.model.rotary_emb(hidden, torch.arange(layout.num_tokens).repeat(2)[None])
    for layer in model.model.layers:
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=rotation)
    return model.lm_head(model.model.norm(hidden))[0, -1]


@pytest.mark.parametrize("sequence_ratio", [0.3, 1.0])
@pytest.mark.parametrize("recompute_ratio", [0.05, 0.2])
def test_recomputing_a_part_of_what_is_retained_equals_its_mask(
    make_engine: MakeEngine, recompute_ratio: float, sequence_ratio: float
) -> None:
    engine = make_engine()
    engine.add_chunks(CHUNKS)
    options = {"recompute_view": "all", "sequence_ratio": sequence_ratio, "recompute_ratio": recompute_ratio}
    chosen = tiny.method(**options)
    given = context(engine, chosen)
    with torch.inference_mode():
        prefilled = chosen.prefill(given)
        found = engine.decoder.logits(prefilled.hidden)[0, -1]
        layout = prefilled.layout or given.layout
        expected = slow_recomputation(layout, mask(layout, prefilled.retained, prefilled.recomputed, "all"))
    assert 0 < int(prefilled.recomputed.sum()) <= recompute_ratio * layout.num_chunk_tokens
    assert not bool((prefilled.recomputed & ~prefilled.retained).any())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["scout", "samkv"])
@pytest.mark.parametrize("view", ["all", "chunk", "retained"])
def test_disk_and_memory_stores_give_the_same_logits(
    make_engine: MakeEngine, tmp_path: Path, method: str, view: str
) -> None:
    found = []
    for store in (":memory:", tmp_path):
        engine = make_engine(store=store)
        engine.add_chunks(CHUNKS)
        found.append(prefill(engine, method, recompute_view=view, sequence_ratio=0.4)[0])
    torch.testing.assert_close(found[0], found[1], atol=0, rtol=0)


def test_the_default_path_in_bfloat16_stays_close_to_float32() -> None:
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = SamKVEngine.from_pretrained(tiny.model(dtype=dtype), tokenizer=tiny.tokenizer())
        engine.add_chunks(CHUNKS)
        logits.append(prefill(engine, "naive_reuse")[0].float())
    assert torch.nn.functional.cosine_similarity(logits[0], logits[1], dim=0) > 0.99
