"""Recognising chunks in prompts."""

from __future__ import annotations

import random

import pytest

from samkv_rag.ingestion.recognition import ChunkIndex, describe, split_prompt

A = "The lamp burns paraffin vapour and is lit at sunset."
B = "The tide turns at four; the slip is then free of weed."


def index_of(*texts: str) -> ChunkIndex:
    index = ChunkIndex()
    index.add(describe(text) for text in texts)
    return index


def found(index: ChunkIndex, prompt: str) -> list[str]:
    return [prompt[match.start : match.stop] for match in index.find(prompt)]


@pytest.mark.parametrize("between", ["", " ", "\n\n", "\n\nfile_path: a.md\n\n", "é漢🦭", "\x00"])
def test_chunks_are_found_anywhere_in_any_order(between: str) -> None:
    prompt = f"{between}{B}{between}{A}{between}{B}"
    assert found(index_of(A, B), prompt) == [B, A, B]


def test_one_changed_character_is_no_match() -> None:
    index = index_of(A)
    for i in range(len(A)):
        assert found(index, A[:i] + "#" + A[i + 1 :]) == []


def test_the_longest_of_nested_chunks_wins() -> None:
    longer = f"{A} {B}"
    assert found(index_of(A, B, longer), f"x {longer} y") == [longer]
    assert found(index_of(A, B, longer), f"x {A} y {B}") == [A, B]


def test_many_chunks_with_one_beginning_are_told_apart() -> None:
    texts = [f"Company handbook, page header. Section {i}: {'word ' * (i % 7)}end." for i in range(500)]
    prompt = "\n".join(texts[::50])
    assert found(index_of(*texts), prompt) == texts[::50]


def test_short_chunks_are_left_to_ordinary_prefill() -> None:
    assert found(index_of("fifteen letters"), "fifteen letters") == []
    assert found(index_of("sixteen  letters"), "sixteen  letters") == ["sixteen  letters"]


def test_every_random_cut_is_found_and_nothing_is_lost() -> None:
    chooser = random.Random(5)
    alphabet = "ab \n漢🦭"
    for _ in range(50):
        chunks = ["".join(chooser.choices(alphabet, k=chooser.randint(16, 60))) for _ in range(6)]
        between = ["".join(chooser.choices("xyz", k=chooser.randint(1, 9))) for _ in range(7)]
        prompt = between[0] + "".join(c + b for c, b in zip(chunks, between[1:], strict=True))
        matches = index_of(*chunks).find(prompt)
        spans = split_prompt(prompt, matches)
        assert "".join(span.text for span in spans) == prompt
        assert [span.text for span in spans if span.text_digest] == chunks


def test_lone_surrogates_do_no_harm() -> None:
    text = "a lone surrogate \ud800 in a text"
    assert found(index_of(text), f"x{text}x") == [text]
