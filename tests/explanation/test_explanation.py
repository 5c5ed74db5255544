"""What an answer was read from, held to what the engine kept and to the texts themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from support import tiny
from samkv_rag import Explanation, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.explanation.data import _runs as runs
from samkv_rag.model.tokenization import PromptTokenizer
from samkv_rag.prefill import PrefillContext, Scout
from samkv_rag.prompt.layout import PromptLayout

CHUNKS = [
    tiny.text(1),
    "A gull 🐦🐦 and a café — 東京タワー.\n\n\ttabs  and   spaces\u0301 <b>&amp;</b>",
    tiny.text(3, 90),
]
HARD_TEXTS = [*CHUNKS, "🐦", "e\u0301" * 20, " leading", "\u200f\u202eabc", "line\r\nline", "a" * 300]


@pytest.fixture
def explained(tiny_engine: SamKVEngine) -> Explanation:
    tiny_engine.add_chunks(CHUNKS)
    return tiny_engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=4, method=tiny.method(sequence_ratio=0.4)).explain()


def test_it_says_what_the_engine_kept(tiny_engine: SamKVEngine) -> None:
    tiny_engine.add_chunks(CHUNKS)
    result = tiny_engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=4, method=tiny.method(sequence_ratio=0.4))
    explained = result.explain()
    assert (explained.answer, explained.method, explained.fallback_reason) == (result.text, "scout", None)
    assert explained.sequence_ratio == pytest.approx(explained.num_retained / explained.num_tokens)
    assert [chunk.text for chunk in explained.chunks] == CHUNKS
    for chunk, use in zip(explained.chunks, result.chunks, strict=True):
        told = [i for span in chunk.retained for i in range(span.start, span.stop)]
        assert told == list(use.retained_tokens)
        assert chunk.num_retained == len(use.retained_tokens)
        assert chunk.num_tokens == use.num_tokens == tiny_engine.count_tokens(chunk.text)


def test_characters_are_those_of_the_tokens(tiny_engine: SamKVEngine, explained: Explanation) -> None:
    """The slow way: each token's bytes, one after another, are the text."""
    for chunk in explained.chunks:
        ids = tiny_engine.tokenize(chunk.text)
        backend = tiny_engine.tokenizer.tokenizer
        lengths = [len(piece) for piece in backend.convert_ids_to_tokens(ids)]  # one character for each byte
        num_bytes = [sum(lengths[:i]) for i in range(len(ids) + 1)]
        for span in (*chunk.retained, *chunk.blocks):
            taken = chunk.text.encode()[num_bytes[span.start] : num_bytes[span.stop]]
            assert taken.decode(errors="ignore").strip() in chunk.text[span.start_char : span.stop_char + 1]
            assert abs(len(taken) - len(chunk.text[span.start_char : span.stop_char].encode())) <= 4


def test_blocks_are_the_chunk_between_its_anchors(explained: Explanation) -> None:
    for chunk in explained.chunks:
        first = chunk.blocks[0].start
        bounds = [(block.start, block.stop) for block in chunk.blocks]
        assert [start for start, _ in bounds] == [first, *(stop for _, stop in bounds[:-1])]
        assert bounds[-1][1] == chunk.num_tokens
        assert first <= Scout.initial_tokens
        assert {stop - start for start, stop in bounds[:-1]} <= {Scout.block_tokens}


def test_the_best_scores_were_kept(explained: Explanation) -> None:
    kept, dropped = [], []
    for chunk in explained.chunks:
        tokens = {i for span in chunk.retained for i in range(span.start, span.stop)}
        for block in chunk.blocks:
            inside = [i in tokens for i in range(block.start, block.stop)]
            (kept if all(inside) else dropped if not any(inside) else []).append(block.score)
    assert kept
    assert dropped
    assert min(kept) >= max(dropped)


def test_scores_are_those_of_the_selection(tiny_engine: SamKVEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's score, the slow way: the mean of its four highest token scores."""
    seen: list[tuple[PromptLayout, list[float]]] = []

    score_tokens = Scout.score_tokens

    def watched(self: Scout, context: PrefillContext) -> Any:
        scores, text_below = score_tokens(self, context)
        seen.append((context.layout, scores.tolist()))
        return scores, text_below

    monkeypatch.setattr(Scout, "score_tokens", watched)
    tiny_engine.add_chunks(CHUNKS)
    explained = tiny_engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1, method=tiny.method(sequence_ratio=0.4)).explain()
    ((layout, scores),) = seen
    for chunk, segment in zip(explained.chunks, layout.chunks, strict=True):
        for block in chunk.blocks:
            of_tokens = sorted(scores[segment.start + block.start : segment.start + block.stop], reverse=True)
            assert block.score == pytest.approx(sum(of_tokens[:4]) / 4, rel=1e-5)


@pytest.mark.parametrize("method", ["full_prefill", "naive_reuse", "epic", "cacheblend"])
def test_methods_that_keep_everything_score_nothing(tiny_engine: SamKVEngine, method: str) -> None:
    tiny_engine.add_chunks(CHUNKS)
    explained = tiny_engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1, method=tiny.method(method)).explain()
    assert explained.num_retained == explained.num_tokens
    for chunk in explained.chunks:
        assert not chunk.blocks
        (whole,) = chunk.retained
        assert (whole.start, whole.stop) == (0, chunk.num_tokens)
        assert chunk.text[whole.start_char : whole.stop_char].strip() == chunk.text.strip()


def test_blocks_outside_a_dynamic_share_have_no_score(make_engine: Callable[..., SamKVEngine]) -> None:
    engine = make_engine(method="samkv")
    engine.add_chunks(CHUNKS)
    prompt = tiny.rag_prompt(CHUNKS)
    shares = [engine.generate(prompt, max_new_tokens=1, method=tiny.method("samkv", dynamic_share=share)).explain() for share in (True, False)]
    without = [[block.score for chunk in one.chunks for block in chunk.blocks].count(None) for one in shares]
    assert without[0] > 0
    assert without[1] == 0
    json.dumps(shares[0].to_dict(), allow_nan=False)


def test_a_fallback_is_told(make_engine: Callable[..., SamKVEngine]) -> None:
    engine = make_engine(method=Scout(min_chunk_tokens=100_000))
    engine.add_chunks(CHUNKS)
    explained = engine.generate(tiny.rag_prompt(CHUNKS), max_new_tokens=1).explain()
    assert explained.method == "full_prefill"
    assert "min_chunk_tokens" in (explained.fallback_reason or "")


def test_without_chunks_there_is_nothing_to_show(tiny_engine: SamKVEngine) -> None:
    explained = tiny_engine.generate("What is it?", max_new_tokens=1).explain()
    assert explained.chunks == ()
    assert explained.num_tokens == 0


def test_a_chunk_that_begins_the_prompt(tiny_engine: SamKVEngine) -> None:
    """Under full prefill the BOS is counted among its tokens; the text's tokens stay where they are."""
    tiny_engine.add_chunks(CHUNKS)
    prompt = f"{CHUNKS[0]}\n\nWhat is it?"
    for method in ("full_prefill", "scout"):
        (chunk,) = tiny_engine.generate(prompt, max_new_tokens=1, method=tiny.method(method)).explain().chunks
        assert chunk.text == CHUNKS[0]
        assert all(CHUNKS[0][span.start_char : span.stop_char] for span in chunk.retained)


def test_a_stream_explains_itself_when_it_has_ended(tiny_engine: SamKVEngine) -> None:
    tiny_engine.add_chunks(CHUNKS)
    prompt = tiny.rag_prompt(CHUNKS)
    with tiny_engine.stream(prompt, max_new_tokens=6) as stream:
        list(stream)
    assert stream.result.explain() == tiny_engine.generate(prompt, max_new_tokens=6).explain()


def test_the_question_is_what_stands_behind_the_last_chunk(tiny_engine: SamKVEngine) -> None:
    tiny_engine.add_chunks(CHUNKS)
    messages = [{"role": "user", "content": "\n\n".join([*CHUNKS, "What </s> is recorded?"])}]
    explained = tiny_engine.generate(messages, max_new_tokens=1).explain()
    assert explained.question == "What </s> is recorded?"


def test_it_is_printed_without_the_documents(explained: Explanation) -> None:
    assert repr(explained) == f"<Explanation: {explained.num_retained} of {explained.num_tokens} tokens retained of 3 chunks>"


def test_json_and_back(explained: Explanation) -> None:
    written = json.dumps(explained.to_dict(), allow_nan=False)
    assert Explanation.from_dict(json.loads(written)) == explained


@pytest.mark.parametrize("values", [{}, {"chunks": 3}, {"chunks": [{}]}, {"chunks": [], "other": 1}, {"chunks": None}])
def test_what_is_no_explanation_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="explain=True"):
        Explanation.from_dict(values)


def test_sources_are_matched_by_text(explained: Explanation) -> None:
    named = explained.with_sources({f"\n{CHUNKS[0]} ": "one.md", CHUNKS[2]: "three.md", "unknown": "no.md"})
    assert [chunk.source for chunk in named.chunks] == ["one.md", "", "three.md"]
    assert replace(named, chunks=explained.chunks) == explained
    assert [chunk.source for chunk in named.with_sources({}).chunks] == ["one.md", "", "three.md"]


def test_runs() -> None:
    assert list(runs([])) == []
    assert list(runs([3])) == [(3, 4)]
    assert list(runs([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 6), (7, 9)]


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
    emoji = tokenizer.chunk_offsets(HARD_TEXTS[1])
    assert len(emoji) == len(tokenizer.chunk_ids(HARD_TEXTS[1]))
    assert emoji[-1][1] == len(HARD_TEXTS[1])
