"""Tokens to text, choice of tokens."""

from __future__ import annotations

import collections

import pytest
import torch

from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.runtime.sampling import AnswerText, Sampling, TokenChooser
from support import tiny

CPU = torch.device("cpu")


def released(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    tokenizer = PromptTokenizer(tiny.tokenizer())
    answer = AnswerText(tokenizer, stop)
    pieces = []
    for token_id in tokenizer.chunk_ids(text):
        pieces.append(answer.add(token_id))
        if answer.stopped:
            break
    return [*pieces, answer.finish()], answer


@pytest.mark.parametrize("text", ["the keeper's record", "漢字 and 🦭 seals, é", "  spaced\n\nlines\t", "a"])
def test_pieces_joined_are_the_text_and_no_piece_is_half_a_character(text: str) -> None:
    pieces, _ = released(text)
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("stop", [("record",), ("cord of", "zzz"), ("d",), (" of the tide.",)])
def test_nothing_of_a_stop_string_is_ever_released(stop: tuple[str, ...]) -> None:
    text = "the keeper's record of the tide."
    pieces, answer = released(text, stop)
    assert answer.stopped
    assert "".join(pieces) == text[: min(text.find(s) for s in stop if s in text)]


def test_what_only_looks_like_a_stop_string_is_released_in_the_end() -> None:
    pieces, answer = released("the record ends with rec", ("record of",))
    assert not answer.stopped
    assert "".join(pieces) == "the record ends with rec"


def test_greedy_takes_the_likeliest() -> None:
    assert TokenChooser(Sampling(), CPU)(torch.tensor([[0.0, 3.0, 1.0]])) == 1


def test_sampling_follows_temperature_and_top_p() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    for temperature, top_p, allowed in ((1.0, 1.0, {0, 1, 2, 3}), (1.0, 0.6, {0}), (1.0, 0.8, {0, 1})):
        choose = TokenChooser(Sampling(temperature=temperature, top_p=top_p, seed=1), CPU)
        assert {choose(logits) for _ in range(400)} == allowed
    choose = TokenChooser(Sampling(temperature=0.5, seed=2), CPU)
    counts = collections.Counter(choose(logits) for _ in range(4000))
    expected = (logits / 0.5).softmax(-1)[0]
    for token_id in range(4):
        assert counts[token_id] / 4000 == pytest.approx(float(expected[token_id]), abs=0.03)
