"""Cutting texts into chunks."""

from __future__ import annotations

import pytest

from support import tiny
from samkv_rag.documents.splitting import CHUNK_TOKENS, split_text


def words(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def characters(text: str) -> list[int]:
    return list(range(len(text)))


def paragraph(word: str, count: int) -> str:
    return " ".join([word] * count)


def test_paragraphs_are_packed_up_to_the_limit() -> None:
    paragraphs = [paragraph(f"p{i}", 100) for i in range(5)]
    chunks = split_text("\n\n".join(paragraphs), words)
    assert chunks == ["\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:4]), paragraphs[4]]


def test_a_long_paragraph_is_cut_at_sentences_and_nothing_is_lost() -> None:
    text = " ".join(f"Sentence number {i} has seven words here." for i in range(200))
    chunks = split_text(text, words)
    assert all(len(words(chunk)) <= CHUNK_TOKENS for chunk in chunks)
    assert all(chunk.endswith(".") for chunk in chunks)
    assert " ".join(chunks) == text


def test_a_short_end_is_no_chunk_of_its_own() -> None:
    text = f"{paragraph('a', 240)}\n\n{paragraph('b', 20)}"
    assert split_text(text, words) == [text]
    assert len(split_text(f"{text} {paragraph('b', 40)}", words)) == 2


def test_a_heading_stands_with_what_it_heads() -> None:
    first, second = paragraph("a", 240), paragraph("b", 200)
    assert split_text(f"{first}\n\n## Second\n\n### Part\n\n{second}", words) == [
        first,
        f"## Second\n\n### Part\n\n{second}",
    ]


def test_a_file_of_headings_alone_is_cut_all_the_same() -> None:
    text = "\n\n".join(f"# Heading {i}" for i in range(300))
    chunks = split_text(text, words)
    assert "\n\n".join(chunks) == text
    assert all(len(words(chunk)) <= 1.2 * CHUNK_TOKENS for chunk in chunks)


def test_a_word_longer_than_a_chunk_is_cut() -> None:
    chunks = split_text("x" * 50, characters, limit=10)
    assert "".join(chunks) == "x" * 50
    assert all(len(chunk) <= 12 for chunk in chunks)


def test_a_script_without_spaces_is_cut_at_its_full_stops() -> None:
    text = "灯台は一八六八年に点灯した。" * 20
    chunks = split_text(text, characters, limit=60)
    assert "".join(chunks) == text
    assert all(chunk.endswith("。") for chunk in chunks)


def test_more_text_at_the_end_leaves_the_first_chunks_as_they_were() -> None:
    text = "\n\n".join(tiny.text(seed) for seed in range(12))
    before = split_text(text, words)
    after = split_text(f"{text}\n\n{tiny.text(99)}", words)
    assert len(before) >= 3
    assert after[: len(before) - 1] == before[:-1]


@pytest.mark.parametrize("text", ["", " \n\n ", "\n"])
def test_of_nothing_there_are_no_chunks(text: str) -> None:
    assert split_text(text, words) == []
