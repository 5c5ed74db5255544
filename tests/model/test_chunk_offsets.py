"""Where a chunk's tokens stand in its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from samkv_rag.model.tokenization import PromptTokenizer
from support import tiny

BIRDS = "A gull 🐦🐦 and a café — 東京タワー.\n\n\ttabs  and   spaces\u0301 <b>&amp;</b>"
HARD_TEXTS = [
    tiny.text(1), BIRDS, tiny.text(3, 90), "🐦",
    "e\u0301" * 20, " leading", "\u200f\u202eabc", "line\r\nline", "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("text", HARD_TEXTS, ids=ascii)
@pytest.mark.parametrize("make", [tiny.tokenizer, tiny.space_prefixing_tokenizer])
def test_every_token_of_a_text_has_its_place(make: Callable[[], Any], text: str) -> None:
    tokenizer = PromptTokenizer(make())
    offsets = tokenizer.chunk_offsets(text)
    assert len(offsets) == len(tokenizer.chunk_ids(text))
    position = 0
    for start, stop in offsets:
        assert position <= start <= stop <= len(text)
        assert not text[position:start].strip(), "only white space may be between tokens"
        position = stop
    assert not text[position:].strip()


def test_a_tokenizer_that_knows_no_offsets_is_asked_for_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = PromptTokenizer(tiny.tokenizer())
    plain = "The seventh keeper lit the lantern."
    expected = tokenizer.chunk_offsets(plain)
    monkeypatch.setattr(type(tokenizer._plain), "offsets", lambda self, text: None)
    found = tokenizer.chunk_offsets(plain)
    assert [stop for _, stop in found] == [stop for _, stop in expected]
    emoji = tokenizer.chunk_offsets(BIRDS)
    assert len(emoji) == len(tokenizer.chunk_ids(BIRDS))
    assert emoji[-1][1] == len(BIRDS)
