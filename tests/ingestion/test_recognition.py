"""Recognising chunks in prompts."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from samkv_rag.ingestion.recognition import ChunkIndex, describe, split_prompt, text_digest

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


def test_short_chunks_are_not_found() -> None:
    assert found(index_of("fifteen letters"), "fifteen letters") == []
    assert found(index_of("sixteen  letters"), "sixteen  letters") == ["sixteen  letters"]


def slowly_found(texts: list[str], prompt: str) -> list[str]:
    """The obvious algorithm: at each position, the longest text that starts there."""
    found, start = [], 0
    while start < len(prompt):
        here = max((text for text in texts if prompt.startswith(text, start)), key=len, default="")
        found += [here] if here else []
        start += len(here) or 1
    return found


def test_matches_equal_those_of_the_obvious_algorithm() -> None:
    """Texts of two letters overlap, nest, and share their beginnings and ends."""
    chooser = random.Random(7)
    num_found = 0
    for _ in range(200):
        source = "".join(chooser.choices("a漢", [9, 1], k=200))
        cuts = [(chooser.randint(0, 150), chooser.randint(16, 50)) for _ in range(30)]
        texts = [source[start : start + length] for start, length in cuts]
        prompt = "".join(chooser.choices([*texts, "a", "漢", source[20:60]], k=20))
        index = index_of(*texts, "a漢漢a" * 10)
        index.remove([describe("a漢漢a" * 10).digest, *(describe(text).digest for text in texts[20:])])
        left = [text for text in texts if text not in texts[20:]]
        spans = split_prompt(prompt, index.find(prompt))
        assert "".join(span.text for span in spans) == prompt
        chunks = [span.text for span in spans if span.text_digest]
        assert chunks == slowly_found(left, prompt)
        num_found += len(chunks)
    assert num_found > 1000


def test_texts_that_differ_only_in_the_middle_are_distinguished() -> None:
    texts = [f"{A} {number:03} {B}" for number in range(200)]
    index = index_of(*texts)
    assert found(index, "".join(texts[::20])) == texts[::20]
    index.remove(describe(text).digest for text in texts[::20])
    assert found(index, "".join(texts[::20])) == []
    assert found(index, texts[1]) == [texts[1]]


def test_a_removed_text_leaves_nothing_behind() -> None:
    index = index_of(A, A, B, f"{A} {B}")
    index.add([describe(A, num_tokens=9)])
    index.remove([describe(text).digest for text in (A, "never known", B, A)])
    assert found(index, f"{A} {B}") == [f"{A} {B}"]
    index.remove([describe(f"{A} {B}").digest])
    assert (index._texts, index._lengths, index._suffixes) == ({}, {}, {})


# The cost of hostile texts


def unlike(text: str, at: int = 20) -> str:
    """Change one character of ``text``, neither near its start nor near its end."""
    return f"{text[:at]}#{text[at + 1 :]}"


PERIOD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
HOSTILE = {
    "other ends": ["a" * length + "b" for length in range(1000, 3000)],
    "other middles": [unlike("a" * length) for length in range(1000, 3000)],
    "short, other middles": [unlike("a" * length) for length in range(40, 2040)],
    "longer than the prompt": ["a" * (24_000 + length) for length in range(2000)],
    "many prefixes": [(PERIOD * 40)[at : at + 40 * n] + "#" for at in range(52) for n in range(1, 40)],
    "many prefixes, other middles": [unlike((PERIOD * 40)[at : at + 40 * n]) for at in range(52) for n in range(1, 40)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_cost_little_and_do_not_hide_others(name: str) -> None:
    index = index_of(A, B, *HOSTILE[name])
    repeated = "a" * 24_000 if "many" not in name else PERIOD * 480
    started = time.process_time()
    assert found(index, f"{repeated}{A}{repeated}{B}") == [A, B]
    assert time.process_time() - started < 2


def test_the_cost_of_many_prefixes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    period = "".join(map(chr, range(400, 800)))
    prompt = period * 60
    index = index_of(*(unlike(prompt[at : at + 8000]) for at in range(len(period))))
    num_digested = 0

    def counting(text: str) -> str:
        nonlocal num_digested
        num_digested += len(text)
        return text_digest(text)

    monkeypatch.setattr("samkv_rag.ingestion.recognition.text_digest", counting)
    assert found(index, prompt) == []
    assert len(prompt) < num_digested < 7 * 256 * len(prompt)  # 1 + 1/2 + ... + 1/400 is less than 7


def test_many_texts_of_one_letter_are_found_quickly() -> None:
    texts = ["a" * length for length in range(16, 2016)]
    index = index_of(*texts)
    started = time.process_time()
    assert found(index, "a" * 24_000) == [*[texts[-1]] * 11, "a" * (24_000 - 11 * 2015)]
    assert time.process_time() - started < 0.5


def test_a_short_prompt_is_searched_for_any_number_of_texts() -> None:
    index = index_of(A, *(A[:16] + "x" * number for number in range(5000)))
    assert found(index, A) == [A]


def test_a_wrong_entry_is_corrected_by_adding_the_text_again() -> None:
    wrongly: list[dict[str, Any]] = [
        *({"suffix": "x" * 16}, {"suffix": ""}, {"prefix": "x"}, {"num_chars": 2**62}),
        {"suffix": "", "num_chars": len(A) + 20},
    ]
    for wrong in wrongly:
        index = ChunkIndex()
        index.add([describe(A)._replace(**wrong)])
        assert not index.has(describe(A))
        assert found(index, A) == []
        index.add([describe(A, num_tokens=9)])
        assert index.has(describe(A))
        assert found(index, A) == [A]


def test_an_empty_text_with_a_forged_prefix_and_suffix_is_not_added() -> None:
    index = index_of(A)
    index.add([describe("")._replace(prefix=B[:16], suffix="x" * 16)])
    assert found(index, f"{'x' * 16}{B}{A}") == [A]


def test_lone_surrogates_do_no_harm() -> None:
    text = "\ud800 a lone surrogate \udfff in a text \ud800"
    assert found(index_of(text), f"x{text}\udfff{text}") == [text, text]
    assert found(index_of(A), f"\ud800{A}\udfff") == [A]
