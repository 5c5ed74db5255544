"""Options that transformers calls top_k, min_p, repetition_penalty, logits and num_return_sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samkv_rag import Piece, SamKVEngine
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.prefill import FullPrefill, PrefillContext, PrefillMethod
from support import tiny
from support.engines import MakeEngine, together

PROMPT = tiny.rag_prompt([tiny.text(1), tiny.text(2)])
NUM_TOKENS = 16
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 1.5, "min_p": 0.1},
    {"temperature": 0.8, "repetition_penalty": 1.4},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 2.0},
]


def by_transformers(engine: SamKVEngine, seed: int, **options: Any) -> Any:
    """Return the answer of transformers' own ``generate``."""
    ids = torch.tensor([engine.tokenizer.text_ids(PROMPT, starts_prompt=True)])
    sampled = options.get("temperature", 0) > 0
    torch.manual_seed(seed)
    return engine.decoder.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=sampled,
        max_new_tokens=NUM_TOKENS,
        **({"top_k": 0} if sampled else {}) | options,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    ), ids.shape[1]


@pytest.mark.parametrize("options", SAMPLINGS, ids=lambda options: "-".join(options))
def test_answers_are_those_of_transformers(tiny_engine: SamKVEngine, options: dict[str, Any]) -> None:
    plain = tiny_engine.generate(PROMPT, method=FullPrefill(), max_new_tokens=NUM_TOKENS)
    for seed in range(3):
        expected, start = by_transformers(tiny_engine, seed, **options)
        result = tiny_engine.generate(PROMPT, method=FullPrefill(), max_new_tokens=NUM_TOKENS, seed=seed, **options)
        assert list(result.token_ids) == [i for i in expected.sequences[0, start:].tolist() if i != 1]
        assert result.token_ids != plain.token_ids, "the options change nothing here, and so nothing is shown"


def test_logprobs_are_of_the_models_own_logits(tiny_engine: SamKVEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.2, "top_k": 8, "repetition_penalty": 1.2}
    expected, _ = by_transformers(tiny_engine, 3, **options)
    options |= {"method": FullPrefill(), "max_new_tokens": NUM_TOKENS, "seed": 3}
    result = tiny_engine.generate(PROMPT, logprobs=True, top_logprobs=4, **options)
    assert [one.token_id for one in result.logprobs] == list(result.token_ids)
    for one, logits in zip(result.logprobs, expected.logits, strict=False):
        logprobs = logits[0].log_softmax(-1)
        assert one.logprob == pytest.approx(float(logprobs[one.token_id]), abs=1e-4)
        assert [other.token_id for other in one.top] == logprobs.topk(4).indices.tolist()
        assert [other.logprob for other in one.top] == pytest.approx(logprobs.topk(4).values.tolist(), abs=1e-4)
        assert all(other.text == tiny_engine.tokenizer.token_text(other.token_id) for other in one.top)
    assert tiny_engine.generate(PROMPT, **options).logprobs == ()


@pytest.mark.parametrize("stop", [None, "stone", "e"])
def test_streamed_logprobs_are_those_of_the_whole(tiny_engine: SamKVEngine, stop: str | None) -> None:
    stream = tiny_engine.stream(PROMPT, max_new_tokens=NUM_TOKENS, logprobs=True, stop=stop)
    pieces = list(stream)
    assert tuple(one for piece in pieces for one in piece.logprobs) == stream.result.logprobs
    assert all(len(piece.logprobs) == len(piece.token_ids) for piece in pieces)


# -- n -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "method", "temperature"),
    [
        ("llama", FullPrefill(), 0.0),
        ("llama", FullPrefill(), 1.5),
        ("llama", tiny.method(sequence_ratio=0.3, refresh_tokens=3), 1.5),
        *((family, tiny.method(), 1.5) for family in ("llama", "mistral-window", "gemma3")),
    ],
)
def test_n_answers_of_one_prefill_are_those_of_their_seeds(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, family: str, method: PrefillMethod, temperature: float
) -> None:
    engine, cls = make_engine(family, chunks=[tiny.text(1), tiny.text(2)]), type(method)
    prefills: list[PrefillContext] = []
    run = cls.prefill
    monkeypatch.setattr(cls, "prefill", lambda self, context: prefills.append(context) or run(self, context))
    options: dict[str, Any] = {"method": method, "temperature": temperature, "max_new_tokens": 40}
    result = engine.generate(PROMPT, n=4, seed=7, logprobs=True, **options)
    assert (len(prefills), result.metrics.method) == (1, method.name)
    alone = [engine.generate(PROMPT, seed=7 + i, logprobs=True, **options) for i in range(4)]
    answers = [result, *result.others]
    assert [one.token_ids for one in answers] == [one.token_ids for one in alone]
    assert len({one.token_ids for one in alone}) == (4 if temperature else 1)
    for one, other in zip(answers, alone, strict=True):
        assert (one.text, one.finish_reason, one.chunks) == (other.text, other.finish_reason, other.chunks)
        assert [t.logprob for t in one.logprobs] == pytest.approx([t.logprob for t in other.logprobs], abs=1e-4)


def test_pieces_say_which_answer_they_are_of(tiny_engine: SamKVEngine) -> None:
    texts = ["", "", ""]
    with tiny_engine.stream(PROMPT, n=3, temperature=1.5, seed=2, max_new_tokens=NUM_TOKENS) as stream:
        for piece in stream:
            texts[piece.index] += piece.text
    assert texts == [stream.result.text, *(one.text for one in stream.result.others)]


def test_answers_never_take_more_places_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = SamKVEngine.from_pretrained(tiny.model(), tokenizer=tiny.tokenizer(), max_running=3)
    sizes: list[int] = []
    logits = engine.decoder.logits
    monkeypatch.setattr(engine.decoder, "logits", lambda hidden: sizes.append(hidden.shape[1]) or logits(hidden))
    results = together(engine, [{"n": n} for n in (2, 1, 3, 2)], prompt=PROMPT, max_new_tokens=NUM_TOKENS)
    assert [1 + len(result.others) for result in results] == [2, 1, 3, 2]
    assert max(sizes) == 3
    with pytest.raises(ConfigurationError, match="n is 4 and 3 answers are decoded together"):
        engine.generate(PROMPT, n=4)


def test_closing_gives_up_all_answers(tiny_engine: SamKVEngine) -> None:
    with tiny_engine.stream(PROMPT, n=3, temperature=1.0, max_new_tokens=2000) as stream:
        assert isinstance(next(stream), Piece)
    assert tiny_engine.generate(PROMPT, max_new_tokens=1).text is not None
    assert tiny_engine._runtime._scheduler.running == []
