"""Tokens to text."""

from __future__ import annotations

import pytest

from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.runtime.sampling import AnswerText
from support import tiny


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


def test_the_mere_beginning_of_a_stop_string_is_released_in_the_end() -> None:
    pieces, answer = released("the record ends with rec", ("record of",))
    assert not answer.stopped
    assert "".join(pieces) == "the record ends with rec"


def test_a_long_answer_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = PromptTokenizer(tiny.tokenizer()), "the tide, 漢字 and 🦭 seals, é\n" * 40
    token_ids, lengths = tokenizer.chunk_ids(text), list[int]()
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: lengths.append(len(ids)) or decode(ids))
    answer = AnswerText(tokenizer, ())
    pieces = [*map(answer.add, token_ids), answer.finish()]
    assert "".join(pieces) == answer.text == text
    assert max(lengths) < 200 < len(token_ids)
