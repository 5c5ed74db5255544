"""Where a chunk's tokens stand in its text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from samkv_rag.model.tokenization import PromptTokenizer
from support import tiny

BIRDS = "A gull 🐦🐦 and a café — 東京タワー.\n\n\ttabs  and   spaces\u0301 <b>&amp;</b>"
HARD_TEXTS = [
    tiny.text(1), BIRDS, tiny.text(3, 90), "🐦",
    "e\u0301" * 20, " leading", "\u200f\u202eabc", "line\r\nline", "a" * 300,
]  # fmt: skip


def _space_prefixing() -> PreTrainedTokenizerFast:
    """Puts a space before every text, as sentencepiece does; unknown characters become their bytes."""
    vocabulary = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    bpe = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>")


@pytest.mark.parametrize("text", HARD_TEXTS, ids=ascii)
@pytest.mark.parametrize("make", [tiny.tokenizer, _space_prefixing])
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
