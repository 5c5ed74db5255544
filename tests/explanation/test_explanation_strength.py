"""How strongly a part is drawn: by rank alone, and whatever the spans are."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from explaining import HARD, PROSE, chunk, explanation, hard, hostile, offsets, usual, whole
from samkv_rag.explanation import Block, Explanation, Span
from samkv_rag.explanation.passages import best_passage, best_passages
from samkv_rag.explanation.strength import BEST, BETTER, DROPPED, GOOD, UNSCORED, Strength

NUM_TOKENS = len(offsets(PROSE))


def levels(one: Explanation, number: int = 0) -> list[int]:
    """Level of each token of a chunk."""
    pieces = Strength(one).tokens(one.chunks[number])
    return [piece.level for piece in pieces for _ in range(piece.start, piece.stop)]


def test_each_token_has_the_level_of_its_block() -> None:
    told = levels(explanation(chunk(kept=((0, 2), (2, 10), (18, 20)), scores=(9.0, 5.0, 1.0, 0.5, 3.0))))
    assert told[:2] == [UNSCORED] * 2
    assert told[2:6] == [BEST] * 4
    assert told[6:10] == [BETTER] * 4
    assert told[10:18] == [DROPPED] * 8
    assert told[18:20] == [GOOD] * 2
    assert told[20:] == [DROPPED] * (NUM_TOKENS - 20)


@pytest.mark.parametrize("scale", [lambda s: s, lambda s: 1e9 * s, lambda s: s - 100, lambda s: s**9], ids=range(4))
def test_only_the_order_of_scores_counts(scale: object) -> None:
    scores = (9.0, 5.0, 1.0, 0.5, 3.0)
    scaled = tuple(scale(score) for score in scores)  # type: ignore[operator]
    assert levels(explanation(chunk(scores=scaled))) == levels(explanation(chunk(scores=scores)))


def test_equal_scores_are_equally_strong_also_across_chunks() -> None:
    one = explanation(chunk(scores=(1.0,) * 5), chunk(scores=(1.0,) * 5))
    assert {level for number in (0, 1) for level in levels(one, number)} == {UNSCORED, BEST, DROPPED}


@pytest.mark.parametrize("score", [None, float("nan"), float("-inf")])
def test_a_kept_block_without_a_score_is_no_stronger_than_an_anchor(score: float | None) -> None:
    one = explanation(chunk(scores=(score, 5.0)))
    assert levels(one)[2:6] == [UNSCORED] * 4
    assert Strength(one).num_blocks == 1


def test_dropped_blocks_do_not_weaken_kept_ones() -> None:
    weak = chunk(kept=(), scores=(8.0,) * 5)
    assert levels(explanation(chunk(), weak)) == levels(explanation(chunk()))


def test_best_rank_counts_all_blocks() -> None:
    one = explanation(chunk(scores=(9.0, 5.0)), chunk(kept=(), scores=(7.0, 7.0)), chunk(scores=()))
    assert [Strength(one).best_rank(each) for each in one.chunks] == [1, 2, None]


@pytest.mark.parametrize("one", [usual(), whole(), hostile(), hard()], ids=["usual", "whole", "hostile", "hard"])
def test_pieces_are_the_whole_chunk_in_order(one: Explanation) -> None:
    for each in one.chunks:
        for length, pieces in (
            (each.num_tokens, Strength(one).tokens(each)),
            (len(each.text), Strength(one).characters(each)),
        ):
            assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces)][: len(pieces)]
            assert sum(piece.stop - piece.start for piece in pieces) == length
            assert all(before.level != after.level for before, after in pairwise(pieces))


def test_marked_characters_are_those_of_the_spans_but_for_white_space_at_their_ends() -> None:
    one = usual()
    each = one.chunks[0]
    marked = [p for p in Strength(one).characters(each) if p.level != DROPPED]
    told = {i for p in marked for i in range(p.start, p.stop) if not each.text[i].isspace()}
    kept = {i for s in each.kept for i in range(s.start_char, s.stop_char) if not each.text[i].isspace()}
    assert told == kept
    runs = [(a, b) for a, b in pairwise([*marked, None]) if a and (b is None or a.stop < b.start)]
    assert all(not each.text[last.stop - 1].isspace() for last, _ in runs)


@pytest.mark.parametrize("text", ["ae\u0301z", "a👩‍👩‍👧z", "a👍🏽z", "a\u0915\u093fz"])
def test_a_cut_within_a_grapheme_moves_to_its_end(text: str) -> None:
    for cut in range(1, len(text) - 1):
        one = explanation(replace(chunk(text), num_tokens=2, kept=(Span(0, 1, 0, cut),), blocks=()))
        pieces = Strength(one).characters(one.chunks[0])
        assert pieces[0].stop in (1, len(text) - 1), cut


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 3, 0, 9), (2, 5, 5, 20)],
        [(0, 3, 0, 9), (3, 5, 9, 20)],
        [(0, 0, 4, 4)],
        [(-3, 2, -9, 5)],
        [(1, 900, 3, 9000)],
        [(800, 900, 8000, 9000)],
        [(5, 2, 20, 9)],
    ],
    ids=["overlapping", "touching", "empty", "too early", "too late", "outside", "backwards"],
)
def test_odd_spans_are_drawn_as_far_as_they_make_sense(spans: list[tuple[int, int, int, int]]) -> None:
    odd = replace(chunk(), kept=tuple(Span(*s) for s in spans), blocks=tuple(Block(*s, 1.0) for s in spans))
    one = explanation(odd, odd)
    assert sum(piece.stop - piece.start for piece in Strength(one).characters(odd)) == len(odd.text)
    assert one.to_html().count("samkv-chunk") >= 2
    assert one._repr_html_()
    assert best_passages(one, Strength(one), 3, 40) is not None


def test_the_best_passage_holds_the_best_block_and_begins_with_a_word() -> None:
    one = explanation(chunk(scores=(1.0, 9.0, 3.0)), chunk(scores=(2.0,)))
    passage = best_passages(one, Strength(one), 1, 60)[0]
    shown = one.chunks[0].text[passage.start : passage.stop]
    assert passage.chunk_number == 0
    assert "in the engine house." in shown
    assert PROSE[passage.start - 1].isspace()
    assert len(shown) <= 60


def test_passages_do_not_overlap_and_are_best_first() -> None:
    one = usual()
    passages = best_passages(one, Strength(one), 9, 40)
    assert len(passages) > 1
    assert not any(a.overlaps(b) for i, a in enumerate(passages) for b in passages[:i])
    assert passages[0].start <= PROSE.index("Two diesel") < passages[0].stop


def test_a_passage_of_a_chunk_without_scores_is_its_beginning() -> None:
    texts = [text for text in HARD if text.strip()]
    one = explanation(*(chunk(text, ((0, 1),), ()) for text in texts))
    for number, text in enumerate(texts):
        passage = best_passage(one, Strength(one), number, 50)
        assert passage.start == 0 < passage.stop <= min(50, len(text))
