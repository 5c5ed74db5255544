"""Recognising chunks in prompts."""

from __future__ import annotations

import random
import time

import pytest

from samkv_rag.ingestion.recognition import ChunkIndex, describe, split_prompt
from samkv_rag.store.catalog import KnownText

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


# Texts that are made to collide

THUE_MORSE = [1 if bin(i).count("1") % 2 else -1 for i in range(1024)]
"""Added to a text's characters, this changes no polynomial's value modulo 2⁶⁴."""


def shifted(text: str, at: int) -> str:
    changed = "".join(chr(ord(c) + step) for c, step in zip(text[at : at + 1024], THUE_MORSE, strict=True))
    return text[:at] + changed + text[at + 1024 :]


def colliding(text: str, number: int = 0) -> KnownText:
    """What would be known of another text of the same length and hashes."""
    return describe(text)._replace(digest=f"{number:064x}")


def test_the_hash_is_the_one_that_the_format_has() -> None:
    text = "漢🦭\U0010ffff and " + 100 * A
    known = describe(text)
    for part, found in ((text[:16], known.prefix_hash), (text, known.text_hash)):
        terms = ((ord(c) + 1) * pow(0x1E3779B97F4A7C15, i, 2**61 - 1) for i, c in enumerate(part))
        assert found == sum(terms) % (2**61 - 1)


def test_thue_morse_texts_do_not_collide() -> None:
    text = "-" * 4000
    assert describe(text).text_hash != describe(shifted(text, 100)).text_hash


def test_a_longer_text_of_the_same_hash_hides_no_chunk() -> None:
    true = "-" * 16 + "The keeper's real record of the tide."
    text = true + "-" * 6000
    assert found(index_of(true, shifted(text[:4000], 100)), f"{text}\n" * 3) == [true] * 3
    index = index_of(true)
    index.add([colliding(text[:4000]), colliding(text[:30], 1), colliding(true, 2)])
    assert found(index, f"{text}\n" * 3) == [true] * 3


def test_texts_made_to_collide_cost_little() -> None:
    """Everywhere in the prompt something seems to stand: its SHA-256 is not computed over and over."""
    line = "abcdefghijklmnop"
    forged, named = ChunkIndex(), ChunkIndex()
    forged.add(describe(shifted(line * 750, 16 + number)) for number in range(1600))
    named.add(colliding(line * number, number) for number in range(1, 1000))
    started = time.process_time()
    for index in (forged, named):
        assert found(index, line * 1500) == []
    assert time.process_time() - started < 2


def test_texts_that_begin_alike_at_many_places_cost_little() -> None:
    """And they hinder no others."""
    index = index_of(A, *("-" * (1000 + number) + "x" for number in range(6000)))
    started = time.process_time()
    assert found(index, A + "-" * 60_000 + A) == [A, A]
    assert time.process_time() - started < 2


def test_a_text_known_wrongly_is_found_once_it_is_known_rightly() -> None:
    for wrong in ({"text_hash": 1}, {"prefix_hash": 1}, {"num_chars": 2**62}):
        index = ChunkIndex()
        index.add([describe(A)._replace(**wrong)])
        assert not index.has(describe(A))
        assert found(index, A) == []
        index.add([describe(A, num_tokens=9)])
        assert index.has(describe(A))
        assert found(index, A) == [A]


def test_lone_surrogates_do_no_harm() -> None:
    text = "a lone surrogate \ud800 in a text"
    assert found(index_of(text), f"x{text}x") == [text]
