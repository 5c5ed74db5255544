"""How strongly a part is marked: by rank only, for any ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from samkv_rag.explanation import Block, Explanation, Range
from samkv_rag.explanation.render import BEST, BETTER, DROPPED, GOOD, UNSCORED, Marking
from support.explaining import PROSE, chunk, explanation, hard, hostile, offsets, usual, whole

NUM_TOKENS = len(offsets(PROSE))


def levels(one: Explanation, number: int = 0) -> list[int]:
    """Level of each token of a chunk."""
    parts = Marking(one).tokens(one.chunks[number])
    return [level for start, stop, level in parts for _ in range(start, stop)]


def test_each_token_has_the_level_of_its_block() -> None:
    told = levels(explanation(chunk(kept=((0, 2), (2, 10), (18, 20)))))
    expected = [UNSCORED] * 2 + [BEST] * 4 + [BETTER] * 4 + [DROPPED] * 8 + [GOOD] * 2
    assert told == expected + [DROPPED] * (NUM_TOKENS - 20)


@pytest.mark.parametrize("scale", [lambda s: 1e9 * s, lambda s: s - 100, lambda s: s**9], ids=range(3))
def test_only_the_order_of_scores_counts(scale: Callable[[float], float]) -> None:
    scores = (9.0, 5.0, 1.0, 0.5, 3.0)
    scaled = tuple(map(scale, scores))
    assert levels(explanation(chunk(scores=scaled))) == levels(explanation(chunk(scores=scores)))


def test_equal_scores_are_equally_strong_also_across_chunks_whatever_was_dropped() -> None:
    one = explanation(chunk(scores=(1.0,) * 5), chunk(scores=(1.0,) * 5), chunk(kept=(), scores=(8.0,) * 5))
    assert {level for number in (0, 1) for level in levels(one, number)} == {UNSCORED, BEST, DROPPED}


@pytest.mark.parametrize("one", [usual(), whole(), hostile(), hard()], ids=["usual", "whole", "hostile", "hard"])
def test_parts_are_the_whole_chunk_in_order(one: Explanation) -> None:
    marking = Marking(one)
    for each in one.chunks:
        for length, parts in ((each.num_tokens, marking.tokens(each)), (len(each.text), marking.text(each))):
            assert [start for start, _, _ in parts] == [0, *(stop for _, stop, _ in parts)][: len(parts)]
            assert sum(stop - start for start, stop, _ in parts) == length
            assert all(before[2] != after[2] for before, after in pairwise(parts))


def test_marked_characters_are_those_of_the_ranges_but_for_white_space_at_their_ends() -> None:
    one = usual()
    each = one.chunks[0]
    marked = {i for start, stop, level in Marking(one).text(each) if level != DROPPED for i in range(start, stop)}
    retained = {i for run in each.retained for i in range(run.start_char, run.stop_char)}
    assert {i for i in marked ^ retained if not each.text[i].isspace()} == set()
    assert not any(each.text[i].isspace() for i in marked if i + 1 not in marked)


@pytest.mark.parametrize("text", ["ae\u0301z", "a👩‍👩‍👧z", "a👍🏽z", "a\u0915\u093fz"])
def test_a_cut_within_a_character_moves_to_its_end(text: str) -> None:
    for cut in range(1, len(text) - 1):
        one = explanation(replace(chunk(text), num_tokens=2, retained=(Range(0, 1, 0, cut),), blocks=()))
        assert Marking(one).text(one.chunks[0])[0][1] in (1, len(text) - 1), cut


@pytest.mark.parametrize(
    "place",
    [(0, 0, 4, 4), (-3, 2, -9, 5), (1, 900, 3, 9000), (800, 900, 8000, 9000), (5, 2, 20, 9)],
    ids=["empty", "too early", "too late", "outside", "backwards"],
)
def test_odd_ranges_are_drawn_as_far_as_they_make_sense(place: tuple[int, int, int, int]) -> None:
    places = [(0, 3, 0, 9), (2, 5, 5, 20), place]  # the first two overlap
    odd = replace(chunk(), retained=tuple(Range(*p) for p in places), blocks=tuple(Block(*p, 1.0) for p in places))
    one = explanation(odd, odd)
    assert sum(stop - start for start, stop, _ in Marking(one).text(odd)) == len(odd.text)
    assert one.to_html().count("samkv-chunk") >= 2


def test_excerpts_hold_the_best_blocks_in_whole_words_and_are_apart() -> None:
    long = " ".join(f"word{i}" for i in range(400))
    scored = tuple(float(i % 97) for i in range(99))
    one = explanation(chunk(long, ((0, 400),), scored), chunk(long, ((0, 400),), (500.0,)))
    excerpts = Marking(one).excerpts()
    assert [number for number, _, _ in excerpts] == [1, 0, 0]
    (_, start, stop), (_, other_start, other_stop) = excerpts[1:]
    assert stop <= other_start or other_stop <= start
    for _, first, last in excerpts:
        assert set(long[first:last].split()) <= set(long.split())
    assert one.chunks[0].blocks[96].start_char in range(start, stop)
