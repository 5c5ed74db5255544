"""The methods against the obvious slow path, on every family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from samkv_rag import SamKVEngine
from samkv_rag.model.attention import additive
from samkv_rag.model.decoder import CausalPass, Decoder
from samkv_rag.prefill import PrefillMethod, Scout
from support import tiny
from support.engines import MakeEngine, Prefill, chunks_apart, layout_of, prefill

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 40), (2, 65), (3, 12))]
PROMPT = tiny.rag_prompt(CHUNKS)
VIEWS = ["all", "chunk", "retained"]
RIVALS = ["cacheblend", "epic", "prophetkv"]
FULL = tiny.method("full_prefill")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_full_prefill_equals_the_models_own_forward(make_engine: MakeEngine, family: str) -> None:
    engine = make_engine(family)
    token_ids = engine._assembler.without_cache(engine._assembler.split(PROMPT)).token_ids
    with torch.inference_mode():
        expected = tiny.model(family)(token_ids[None]).logits[0, -1]
    torch.testing.assert_close(prefill(engine, FULL, PROMPT).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", [PROMPT, "\n\n".join(CHUNKS) + "\n\nAnswer:"], ids=["behind text", "chunk first"])
@pytest.mark.parametrize(
    "method",
    [
        *(tiny.method(sequence_ratio=1.0, recompute_view=view) for view in VIEWS),
        *(tiny.method(name, recompute_ratio=1.0) for name in RIVALS),
    ],
    ids=tiny.method_id,
)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keep_all_recompute_all_equals_full_prefill(
    make_engine: MakeEngine, family: str, method: PrefillMethod, prompt: str
) -> None:
    engine = make_engine(family, chunks=CHUNKS)
    expected, found = prefill(engine, FULL, prompt), prefill(engine, method, prompt)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    for layer in range(engine.decoder.num_layers):
        for ours, theirs in zip(found.kv.layer(layer), expected.kv.layer(layer), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_stored_and_rotated_chunk_equals_a_direct_prefill_there(
    make_engine: MakeEngine, family: str, tmp_path: Path
) -> None:
    engine = make_engine(family, store=tmp_path, chunks=CHUNKS[:1])
    ((reader, hit),) = engine._library.read(CHUNKS[:1])
    assert hit
    offset, decoder = 1000, engine.decoder
    preamble = torch.tensor(engine.tokenizer.preamble_ids(None))
    assert len(preamble) == engine._library.first_position > 0
    token_ids = torch.cat((preamble, reader.token_ids))
    cache: Any = DynamicCache()  # with one given, positions are not mistaken for packed sequences
    with torch.inference_mode():
        tiny.model(family)(
            token_ids[None],
            position_ids=torch.arange(offset, offset + len(token_ids))[None],
            past_key_values=cache,
        )
    rotate = decoder.rotation_by(torch.tensor([offset]))
    for layer in range(decoder.num_layers):
        expected = cache.layers[layer]
        keys, values = reader.layer(layer)
        torch.testing.assert_close(rotate[layer](keys), expected.keys[0, :, len(preamble) :], atol=1e-4, rtol=0)
        torch.testing.assert_close(values, expected.values[0, :, len(preamble) :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_naive_reuse_equals_a_forward_over_a_block_diagonal_mask(make_engine: MakeEngine, family: str) -> None:
    engine = make_engine(family, chunks=CHUNKS, preamble="")
    layout = layout_of(engine, PROMPT)
    model = tiny.model(family)
    mask = tiny.masks(model, chunks_apart(layout))
    with torch.inference_mode():
        expected = model(layout.token_ids[None], attention_mask=mask).logits[0, -1]
    found = prefill(engine, tiny.method("naive_reuse"), PROMPT).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["scout", "samkv"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("family", ["llama", *tiny.WINDOWED])
def test_recomputing_and_decoding_equal_a_forward_over_the_mask_they_mean(
    make_engine: MakeEngine, family: str, view: str, method: str
) -> None:
    engine = make_engine(family, chunks=CHUNKS, preamble="")
    found = prefill(engine, tiny.method(method, recompute_view=view, sequence_ratio=0.3), PROMPT)
    answer_ids, logits, decoder = list(range(40, 70)), [found.logits], engine.decoder
    found.kv.narrow(decoder.windows)
    with torch.inference_mode():
        for position, token_id in enumerate(answer_ids, found.layout.num_tokens):
            hidden, at = decoder.embed(torch.tensor([[token_id]])), torch.tensor([position])
            logits.append(decoder.logits(decoder.run_layers(hidden, at, CausalPass(found.kv, at)))[0, -1])
    expected = slow_recomputation(found, mask(found, view), family, answer_ids)
    torch.testing.assert_close(torch.stack(logits), expected, atol=1e-4, rtol=0)


def mask(found: Prefill, view: str) -> torch.Tensor:
    """Return which tokens see which, ``[2·tokens, 2·tokens]``.

    Every prompt token appears twice: the first copies are the cache (chunks see only
    themselves), the second are what is computed for this prompt.
    """
    layout, kept, recomputed = found.layout, found.prefilled.retained, found.prefilled.recomputed
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


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_several_questions_go_on_from_where_they_scouted(
    make_engine: MakeEngine, family: str, view: Any, recompute: bool
) -> None:
    """In the layers that scouting runs, the text has seen all chunks as cached, and no recomputed token."""
    engine = make_engine(family, chunks=CHUNKS, preamble="")
    method = Scout(
        min_chunk_tokens=0, several_questions=0, recompute_view=view, sequence_ratio=0.3, recompute=recompute
    )
    found = prefill(engine, method, PROMPT)
    above, is_text = mask(found, view), found.layout.is_text
    causal = torch.ones(len(is_text), len(is_text), dtype=torch.bool).tril()
    beneath = above.clone()
    beneath[len(is_text) :][is_text] = torch.cat((causal & ~is_text, causal & is_text), 1)[is_text]
    num_beneath = method.layers_that_score(engine.decoder)[-1] + 1
    assert 0 < num_beneath < engine.decoder.num_layers
    masks = [beneath] * num_beneath + [above] * (engine.decoder.num_layers - num_beneath)
    torch.testing.assert_close(found.logits, slow_recomputation(found, masks, family)[0], atol=1e-4, rtol=0)
    again = prefill(engine, replace(method, several_questions=3), PROMPT)
    assert torch.equal(again.prefilled.retained, found.prefilled.retained)
    assert not torch.allclose(again.logits, found.logits, atol=1e-3)


@pytest.mark.parametrize(
    ("earlier", "question", "goes_on"),
    [
        ("", "Who came? When? Why?", True),
        ("", "\u8c01\uff1f\u51e0\u65f6\uff1f\u4e3a\u4ec0\u4e48\uff1f", True),
        ("", "Who came, when, and why?", False),
        ("Who was it? Where? Why?", "And when?", False),
    ],
)
def test_the_last_message_alone_says_whether_it_asks_several_things(
    make_engine: MakeEngine, earlier: str, question: str, goes_on: bool
) -> None:
    engine = make_engine(chunks=CHUNKS)
    messages = [
        {"role": "system", "content": "What do these say? " + "\n\n".join(CHUNKS)},
        *(
            [{"role": "user", "content": earlier}, {"role": "assistant", "content": "I do not know."}]
            if earlier
            else []
        ),
        {"role": "user", "content": question},
    ]
    likelihoods = [
        engine.generate_scored(messages, "a keeper", method=tiny.method(several_questions=number)).reference_nll
        for number in (3, 0, 1000)
    ]
    assert (likelihoods[0] == likelihoods[1], likelihoods[0] == likelihoods[2]) == (goes_on, not goes_on)


@torch.inference_mode()
def slow_recomputation(
    found: Prefill, masks: torch.Tensor | Sequence[torch.Tensor], family: str = "llama", answer_ids: Sequence[int] = ()
) -> torch.Tensor:
    """Return logits ``[1 + answered, vocab]`` of the prompt's last token and of the answer's, from one dense forward
    over both copies of the prompt and the answer, which sees what the prompt's last token sees. ``masks``: one for all
    layers, or one for each."""
    model, n, m = tiny.model(family), found.layout.num_tokens, len(answer_ids)
    position = torch.cat((torch.arange(n).repeat(2), torch.arange(n, n + m)))
    answers = torch.ones(m, m, dtype=torch.bool).tril()
    hidden = model.model.embed_tokens(
        torch.cat((found.layout.token_ids.repeat(2), torch.tensor(answer_ids, dtype=torch.int64)))[None]
    )
    for number, (layer, window) in enumerate(zip(model.model.layers, tiny.windows(model, position), strict=True)):
        mask = masks if isinstance(masks, torch.Tensor) else masks[number]
        answered = torch.cat((mask[-1].expand(m, -1), answers), 1)
        own = torch.cat((torch.cat((mask, torch.zeros(2 * n, m, dtype=torch.bool)), 1), answered)) & window
        own |= torch.eye(len(own), dtype=torch.bool) & ~own.any(1)  # dropped: sees nothing, seen by none
        rotation = tiny.rotary(model, number, hidden, position[None])
        hidden = layer(hidden, attention_mask=additive(own, torch.float32)[None, None], position_embeddings=rotation)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return Decoder(model).logits(hidden)[0, 2 * n - 1 :]


@pytest.mark.parametrize("sequence_ratio", [0.3, 1.0])
@pytest.mark.parametrize("recompute_ratio", [0.05, 0.2])
def test_recomputing_a_part_of_what_is_retained_equals_its_mask(
    make_engine: MakeEngine, recompute_ratio: float, sequence_ratio: float
) -> None:
    engine = make_engine(chunks=CHUNKS, preamble="")
    method = tiny.method(recompute_view="all", sequence_ratio=sequence_ratio, recompute_ratio=recompute_ratio)
    found = prefill(engine, method, PROMPT)
    retained, recomputed = found.prefilled.retained, found.prefilled.recomputed
    assert 0 < int(recomputed.sum()) <= recompute_ratio * found.layout.num_chunk_tokens
    assert not bool((recomputed & ~retained).any())
    expected = slow_recomputation(found, mask(found, "all"))[0]
    torch.testing.assert_close(found.logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "method",
    [
        *(tiny.method(n, recompute_view=view, sequence_ratio=0.4) for n in ("scout", "samkv") for view in VIEWS),
        *map(tiny.method, RIVALS),
    ],
    ids=tiny.method_id,
)
def test_disk_and_memory_stores_give_the_same_logits(
    make_engine: MakeEngine, tmp_path: Path, method: PrefillMethod
) -> None:
    engines = (make_engine(store=store, chunks=CHUNKS) for store in (":memory:", tmp_path))
    memory, disk = (prefill(engine, method, PROMPT).logits for engine in engines)
    torch.testing.assert_close(memory, disk, atol=0, rtol=0)


def test_the_default_path_in_bfloat16_stays_close_to_float32() -> None:
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        engine = SamKVEngine.from_pretrained(tiny.model(dtype=dtype), tokenizer=tiny.tokenizer())
        engine.add_chunks(CHUNKS)
        logits.append(prefill(engine, tiny.method("naive_reuse"), PROMPT).logits.float())
    assert torch.nn.functional.cosine_similarity(logits[0], logits[1], dim=0) > 0.99
