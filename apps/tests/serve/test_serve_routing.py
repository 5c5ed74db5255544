"""Requests go to the engine that has their documents in memory, and errors survive pickling."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from samkv_apps.serve.errors import ApiError, queue_full
from samkv_apps.serve.routing import balanced, ranked
from support import tiny

NAMES = ["anna", "bert", "cleo", "dora"]
TEXTS = [tiny.text(seed) for seed in range(400)]


def first(texts: list[str], names: list[str] = NAMES) -> str:
    return ranked(texts, names)[0]


def test_every_router_agrees_whatever_the_order() -> None:
    for start in range(0, 40, 4):
        texts = TEXTS[start : start + 4]
        order = ranked(texts, NAMES)
        assert sorted(order) == NAMES
        assert ranked([f" {text}\n" for text in reversed(texts)], NAMES[::-1]) == order
        assert first(texts) in {first([text]) for text in texts}


def test_engines_have_like_shares() -> None:
    counts = Counter(first([text]) for text in TEXTS)
    assert all(70 <= counts[name] <= 130 for name in NAMES)


def test_an_engine_that_goes_moves_its_own_documents_alone() -> None:
    left = NAMES[1:]
    for text in TEXTS:
        order = ranked([text], NAMES)
        assert ranked([text], left) == [name for name in order if name != NAMES[0]]


def test_most_of_the_characters_decide() -> None:
    anna, bert = ([text for text in TEXTS if first([text], ["anna", "bert"]) == name] for name in ("anna", "bert"))
    assert first([anna[0], *bert[:2]], ["anna", "bert"]) == "bert"
    short = next(text for text in "abcdefgh" if first([text], ["anna", "bert"]) == "bert")
    assert first([anna[0], *[short] * 5], ["anna", "bert"]) == "anna"


def test_an_engine_with_too_much_to_do_is_tried_last() -> None:
    assert balanced(["bert", "anna"], {"anna": 0, "bert": 0}) == ["bert", "anna"]
    assert balanced(["bert", "anna"], {"anna": 3, "bert": 4}) == ["bert", "anna"]
    assert balanced(["bert", "anna"], {"anna": 2, "bert": 5}) == ["anna", "bert"]
    assert balanced(["cleo", "bert", "anna"], {"anna": 4, "bert": 4, "cleo": 4}) == ["cleo", "bert", "anna"]


@pytest.mark.parametrize("error", [queue_full("later"), ApiError(404, "not here", param="model", code="no_model")])
def test_an_error_crosses_processes(error: ApiError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (ApiError, str(error), vars(error))
