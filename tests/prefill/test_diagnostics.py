"""Every diagnostic is provoked, and none is reported without a cause."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from samkv_rag import GenerationMetrics, SamKVEngine
from samkv_rag.diagnostics import (
    CACHE_UNDERFLOW,
    CONSENSUS_FAILURE,
    EXCESSIVE_RECOMPUTATION,
    MEANINGS,
    consensus_failure,
    mean_pairwise_cosine,
)
from samkv_rag.prefill import method_classes
from support import tiny
from support.engines import CHUNKS, PROMPT, MakeEngine

SPARSE = ["scout", "samkv"]


def ask(engine: SamKVEngine, prompt: str = PROMPT, method: str | None = None, **options: Any) -> GenerationMetrics:
    """Return an answer's metrics, at a ratio of 0.3, by default with the engine's own method."""
    name = method or engine.method.name
    ratio = next((field.name for field in fields(method_classes()[name]) if field.name.endswith("_ratio")), None)
    options = ({ratio: 0.3} if ratio else {}) | options
    return engine.generate(prompt, max_new_tokens=1, method=tiny.method(name, **options)).metrics


def messages(metrics: GenerationMetrics) -> dict[str, str]:
    found = {diagnostic.name: diagnostic.message for diagnostic in metrics.diagnostics}
    assert len(found) == len(metrics.diagnostics), "one name twice"
    assert set(found) <= set(MEANINGS)
    return found


@pytest.mark.parametrize("num_chunks", [0, 1, 2, 4])
@pytest.mark.parametrize("method", method_classes())
def test_no_diagnostic_without_a_cause(make_engine: MakeEngine, method: str, num_chunks: int) -> None:
    engine = make_engine("qwen2" if num_chunks == 2 else "llama", method=method, chunks=CHUNKS)
    assert ask(engine, tiny.rag_prompt(CHUNKS[:num_chunks])).diagnostics == ()


# -- cache underflow -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", SPARSE)
def test_anchors_that_the_budget_does_not_hold_are_shrunk_and_it_is_said(make_engine: MakeEngine, method: str) -> None:
    engine = make_engine(method=method, chunks=CHUNKS, initial_tokens=9)
    anchors = {"initial_tokens": 9} if method == "scout" else {}
    metrics = ask(engine, sequence_ratio=0.1, **anchors)
    budget = int(0.1 * metrics.chunk_tokens)
    message = messages(metrics)[CACHE_UNDERFLOW]
    assert f"a budget of {budget} tokens for 4 chunks: anchors shrunk from 9+" in message
    assert message.endswith("raise sequence_ratio or retrieve fewer chunks")
    assert 0 < metrics.sequence_ratio <= 0.1
    assert CACHE_UNDERFLOW not in messages(ask(engine, sequence_ratio=0.9, **anchors))


@pytest.mark.parametrize("method", SPARSE)
@pytest.mark.parametrize("initial_tokens", [0, 4])
def test_a_budget_of_no_token_is_no_error_but_said(make_engine: MakeEngine, method: str, initial_tokens: int) -> None:
    engine = make_engine(method=method, chunks=CHUNKS, initial_tokens=initial_tokens)
    metrics = ask(engine, sequence_ratio=0.001)
    assert (metrics.sequence_ratio, metrics.completion_tokens) == (0.0, 1)
    (diagnostic,) = metrics.to_dict()["diagnostics"]
    assert diagnostic == {"name": CACHE_UNDERFLOW, "message": messages(metrics)[CACHE_UNDERFLOW]}
    assert "a budget of 0 tokens for 4 chunks: nothing of the chunks is kept" in diagnostic["message"]
    assert diagnostic["message"].endswith("raise sequence_ratio")


# -- excessive recomputation ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scout", "samkv", "naive_reuse", "cacheblend", "epic", "prophetkv"])
def test_chunks_that_were_not_stored_count_as_recomputed(make_engine: MakeEngine, method: str) -> None:
    engine = make_engine(method=method, chunks=CHUNKS)
    engine.remove_chunks(CHUNKS[1:3])
    engine.announce(CHUNKS)
    metrics = ask(engine)
    assert metrics.chunks_missed == 2
    value, _, cause = messages(metrics)[EXCESSIVE_RECOMPUTATION].partition(": ")
    computed = float(value.split()[0])
    missed_share = sum(map(engine.count_tokens, CHUNKS[1:3])) / metrics.chunk_tokens
    assert missed_share - 0.01 < computed <= missed_share + metrics.recompute_ratio + 0.01
    assert f"the method asks for {0 if method == 'naive_reuse' else 0.3}" in value
    assert cause == "the store lacked 2 of the prompt's chunks; ingest them beforehand, with add_chunks"
    assert ask(engine).diagnostics == ()  # they are stored now


def test_a_recomputed_token_of_a_chunk_that_was_not_stored_counts_once(make_engine: MakeEngine) -> None:
    engine = make_engine(chunks=CHUNKS)
    engine.remove_chunks(CHUNKS)
    engine.announce(CHUNKS)
    assert messages(ask(engine))[EXCESSIVE_RECOMPUTATION].startswith("1.00 of the chunk tokens were computed")


def test_few_missed_tokens_within_the_bound_are_not_excessive(make_engine: MakeEngine) -> None:
    engine = make_engine(method="epic", chunks=CHUNKS)
    engine.remove_chunks(CHUNKS[:1])
    engine.announce(CHUNKS)
    metrics = ask(engine, recompute_ratio=1.0)
    assert (metrics.chunks_missed, metrics.diagnostics) == (1, ())


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        (PROMPT, {"min_chunk_tokens": 10_000}, "reuse pays from 10000 (min_chunk_tokens)"),
        ("Use these passages.\n\n" + CHUNKS[0], {}, "no question follows the last chunk"),
        ([{"role": "user", "content": "\n\n".join(CHUNKS)}], {}, "no question follows the last chunk"),
    ],
    ids=["few", "no question", "a question that is stored"],
)
def test_a_fallback_to_full_prefill_is_excessive(
    make_engine: MakeEngine, prompt: Any, options: dict[str, Any], reason: str
) -> None:
    metrics = ask(make_engine(chunks=CHUNKS), prompt, **options)
    assert (metrics.method, metrics.sequence_ratio, metrics.recompute_ratio) == ("full_prefill", 1.0, 1.0)
    assert metrics.fallback_reason is not None and reason in metrics.fallback_reason
    message = messages(metrics)[EXCESSIVE_RECOMPUTATION]
    assert "full prefill ran: " in message and reason in message
    assert message.endswith("or lower min_chunk_tokens")


# -- consensus failure ---------------------------------------------------------------------------


def test_queries_of_a_crowd_of_chunks_do_not_tell_them_apart(make_engine: MakeEngine) -> None:
    """Each gets the mean of all others, which is nearly the same for 60 chunks."""
    crowd = [tiny.text(seed, num_words=30) for seed in range(60)]
    engine = make_engine(method="samkv", chunks=crowd)
    message = messages(ask(engine, tiny.rag_prompt(crowd)))[CONSENSUS_FAILURE]
    assert message.startswith("the personalised queries of 60 chunks have a mean cosine of 0.9999")
    assert message.endswith("or use the method Scout")
    assert CONSENSUS_FAILURE not in messages(ask(engine, tiny.rag_prompt(crowd), personalization=False))
    assert CONSENSUS_FAILURE not in messages(ask(engine, tiny.rag_prompt(crowd), method="scout"))
    assert CONSENSUS_FAILURE not in messages(ask(engine, tiny.rag_prompt(crowd[:10])))


def test_chunks_of_one_block_never_stand_out_from_their_anchors(make_engine: MakeEngine) -> None:
    engine = make_engine(method="samkv", chunks=CHUNKS, block_tokens=500)
    metrics = ask(engine)
    message = messages(metrics)[CONSENSUS_FAILURE]
    assert message.startswith("none of 4 blocks stands out from its chunk's anchors, so these alone are kept")
    assert metrics.sequence_ratio == 4 * 8 / metrics.chunk_tokens
    assert ask(engine, dynamic_share=False).diagnostics == ()


def test_both_failures_make_one_diagnostic() -> None:
    (both,) = consensus_failure(torch.ones(3, 2, 4, 8), torch.full((5,), -torch.inf), personalised=True)
    assert "mean cosine of 1.00000, above 0.9999" in both.message
    assert "none of 5 blocks" in both.message


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    torch.manual_seed(0)
    queries = torch.randn(5, 2, 3, 8)
    pairs = [torch.cosine_similarity(queries[i], queries[j], dim=-1) for i in range(5) for j in range(5) if i != j]
    torch.testing.assert_close(mean_pairwise_cosine(queries), torch.stack(pairs).mean())


# -- chunks summarised otherwise -----------------------------------------------------------------


@pytest.mark.parametrize("ingested", [{"block_tokens": 16}, {"initial_tokens": 2}, {"local_tokens": 7}], ids=str)
def test_chunks_summarised_otherwise_are_others(
    make_engine: MakeEngine, tmp_path: Path, ingested: dict[str, int]
) -> None:
    make_engine(store=tmp_path, chunks=CHUNKS, **ingested)
    engine = make_engine(store=tmp_path)
    assert not engine.has_chunk(CHUNKS[0])
    assert engine.add_chunks(CHUNKS).num_added == 4
    assert ask(engine, method="samkv").chunks_hit == 4
