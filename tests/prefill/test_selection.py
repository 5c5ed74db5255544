"""The steps of the methods, each against its formula."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from samkv_rag.prefill import Scout
from samkv_rag.prefill.passes.planned_pass import fuse
from samkv_rag.prefill.passes.selection import Anchors, Blocks, Budget, anchor_mask, plan_budget
from samkv_rag.prefill.samkv import dynamic_share, personalized_queries
from samkv_rag.prefill.scout import credit_sentences
from samkv_rag.prompt.layout import PromptLayout, Segment
from support import engines, tiny


def layout_of(*lengths: int) -> PromptLayout:
    """A head of 3 tokens, chunks of ``lengths`` with 2 of text between, and a tail of 5."""
    segments = [Segment("prefix", torch.arange(3))]
    for length in lengths:
        segments += [Segment("chunk", torch.arange(length)), Segment("text", torch.arange(2))]
    segments[-1] = Segment("text", torch.arange(5))
    return PromptLayout(segments, torch.device("cpu"))


def test_layout_masks() -> None:
    layout = layout_of(4, 3)
    assert layout.is_text.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1]
    assert layout.chunk_number.tolist() == [-1, -1, -1, 0, 0, 0, 0, -1, -1, 1, 1, 1, -1, -1, -1, -1, -1]
    assert layout.index_in_chunk.tolist() == [0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert layout.tail == slice(12, 17)
    assert layout.num_chunk_tokens == 7


@pytest.mark.parametrize("num_chunks", [1, 4])
def test_personalised_queries_follow_the_formula(num_chunks: int) -> None:
    torch.manual_seed(0)
    query, local = torch.randn(2, 3, 8), torch.randn(num_chunks, 2, 3, 8)
    found = personalized_queries(query, local)
    for i, layer, head in product(range(num_chunks), range(2), range(3)):
        q = query[layer, head]
        others = [local[j, layer, head] for j in range(num_chunks) if j != i]
        agreement = sum(torch.cosine_similarity(q, o, dim=0).abs() * o for o in others)
        torch.testing.assert_close(found[i, layer, head], q + agreement / max(1, num_chunks - 1))


@pytest.mark.parametrize(
    ("scores", "anchors", "expected"),
    [
        ([[1.0, 3.0, 5.0]], [4.0], 0.25),
        ([[1.0, 3.0, 5.0]], [5.0], 0.0),
        ([[1.0, 3.0, 5.0]], [1.0], 0.0),
        ([[1.0, 5.0]], [9.0], 0.0),
        ([[0.0, 4.0], [0.0, 4.0]], [1.0, 3.0], (0.75 + 0.25) / 2),
    ],
)
def test_dynamic_share_is_the_mean_over_layers(
    scores: list[list[float]], anchors: list[float], expected: float
) -> None:
    assert float(dynamic_share(torch.tensor(scores), torch.tensor(anchors))) == pytest.approx(expected)


def test_anchors_shrink_to_half_the_budget() -> None:
    layout = layout_of(100, 100)
    assert plan_budget(layout, 0.2, Anchors(4, 4)) == Budget(40, Anchors(4, 4))
    assert plan_budget(layout, 0.06, Anchors(4, 4)) == Budget(12, Anchors(1, 1))
    assert plan_budget(layout, 0.001, Anchors(4, 4)) == Budget(0, Anchors(0, 0))
    assert plan_budget(layout, 0.2, Anchors(10**12, 10**12)) == Budget(40, Anchors(5, 5))
    assert plan_budget(layout_of(3, 97), 0.15, Anchors(4, 4)) == Budget(15, Anchors(2, 2)), "a chunk of 3 has no more"


def test_blocks_cover_every_middle_once_and_no_anchor() -> None:
    layout = layout_of(21, 8, 40)
    blocks = Blocks(layout, Anchors(4, 4), 5)
    assert blocks.per_chunk.tolist() == [3, 0, 7]
    assert torch.bincount(blocks.of_token).tolist() == [5, 5, 3, 5, 5, 5, 5, 5, 5, 2]
    everything = blocks.best_within(torch.ones(10), 10_000)
    assert torch.equal(everything, layout.is_chunk & ~anchor_mask(layout, Anchors(4, 4)))


def test_the_best_blocks_are_taken_and_the_last_is_cut_at_the_budget() -> None:
    layout = layout_of(21, 8, 40)
    blocks = Blocks(layout, Anchors(4, 4), 5)
    scores = torch.tensor([0.0, 9.0, 8.0, 1.0, 7.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    tokens = [blocks.positions[blocks.of_token == block].tolist() for block in range(10)]
    for budget in (0, 3, 5, 8, 10, 13):
        wanted = sorted((tokens[1] + tokens[2] + tokens[4])[:budget])
        assert blocks.best_within(scores, budget).nonzero()[:, 0].tolist() == wanted
    only_two = scores.masked_fill(scores < 8, -torch.inf)
    assert blocks.best_within(only_two, 99).nonzero()[:, 0].tolist() == sorted(tokens[1] + tokens[2])


def test_a_block_scores_by_its_best_tokens() -> None:
    layout = layout_of(12)
    blocks = Blocks(layout, Anchors(1, 1), 5)
    scores = torch.zeros(layout.num_tokens)
    scores[4:14] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 0.0, 0.0, 0.0, 6.0])
    assert blocks.top_token_mean(scores, 2).tolist() == [4.5, 3.0]
    assert blocks.top_token_mean(scores, 99).tolist() == [3.0, 1.2000000476837158]


def test_attention_on_a_sentence_end_counts_for_its_words() -> None:
    layout = layout_of(9, 6)
    ends = {0: [4, 5, 8], 1: [2]}  # two signs side by side; the second chunk's last sentence is cut off
    segments, number = [], 0
    for segment in layout.segments:
        mask = torch.zeros(len(segment.token_ids), dtype=torch.bool)
        if segment.kind == "chunk":
            mask[ends[number]] = True
            number += 1
        segments.append(replace(segment, sentence_ends=mask))
    layout = PromptLayout(segments, torch.device("cpu"))
    scores = torch.rand(layout.num_tokens, generator=torch.Generator().manual_seed(0))
    expected = scores.clone()
    for chunk, at in zip(layout.chunks, ends.values(), strict=True):
        first = chunk.start
        for end in (chunk.start + i for i in at):
            if end < chunk.stop - 1:
                expected[first:end] += 3.0 * scores[end] / max(1, end - first) ** 0.5
            expected[end] = 0
            first = end + 1
    torch.testing.assert_close(credit_sentences(scores, layout, 3.0), expected)
    assert credit_sentences(scores, layout, 0.0) is scores


def test_fusion_mixes_chunks_and_leaves_text() -> None:
    recomputed, cached = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    cached[:, :, 1] = torch.nan
    fused = fuse(recomputed, cached, torch.tensor([True, False, True]), 0.75)
    torch.testing.assert_close(fused[:, :, 0], 0.75 * recomputed[:, :, 0] + 0.25 * cached[:, :, 0])
    torch.testing.assert_close(fused[:, :, 1], recomputed[:, :, 1])


@pytest.mark.parametrize(
    ("family", "layers"),
    [("llama", [2, 3]), ("mistral-window", [2, 3]), ("gemma2", [3]), ("gpt-oss", [3]), ("gemma3", [2])],
)
def test_scouting_scores_are_the_questions_attention(
    make_engine: engines.MakeEngine, family: str, layers: list[int]
) -> None:
    """Compare with the weights of transformers' own eager attention over the same mask, in the widest layers."""
    chunks = [tiny.text(1, 30), tiny.text(2, 20)]
    engine = make_engine(family, chunks=chunks, preamble="")
    method = Scout(emphasis_tokens=3, emphasis_weight=2.0, score_layers=(0.5, 1.0))
    layout = engines.layout_of(engine, tiny.rag_prompt(chunks))
    with torch.inference_mode():
        found, _ = method.score_tokens(engine.decoder, layout)
    attention = engines.attention_of_tail(layout, family)
    weights = torch.full((attention.shape[2],), 1 / (attention.shape[2] - 3))
    weights[-3:] = 2.0 / 3
    torch.testing.assert_close(found, (weights @ attention[layers]).sum((0, 1)), atol=1e-4, rtol=1e-4)
