"""Several engines: requests go to the one that has their documents in memory, and errors come back as they were."""

from __future__ import annotations

import pickle
import random
from collections import Counter, defaultdict

import pytest

from samkv_apps.serve.errors import ApiError, queue_full
from samkv_apps.serve.routing import ranked
from support import tiny
from support.commands import Run, only_line

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


def test_what_a_request_asks_of_is_in_memory_where_it_goes() -> None:
    chooser = random.Random(0)
    topics = [TEXTS[start : start + 5] for start in range(0, 200, 5)]
    requests = [chooser.sample(chooser.choice(topics), 4) for _ in range(1000)]  # questions overlap, and differ
    shares = {}
    for way in ("by documents", "by chance"):
        seen: dict[str, set[str]] = defaultdict(set)
        known: set[str] = set()
        num_known = num_there = 0
        for texts in requests:
            name = first(texts) if way == "by documents" else chooser.choice(NAMES)
            num_known += known.issuperset(texts)  # some engine has served each of them
            num_there += known.issuperset(texts) and seen[name].issuperset(texts)
            seen[name].update(texts)
            known.update(texts)
        shares[way] = num_there / num_known
    assert shares["by documents"] >= 0.9 > 0.8 > shares["by chance"]


@pytest.mark.parametrize("error", [queue_full("later"), ApiError(404, "not here", param="model", code="no_model")])
def test_an_error_crosses_processes(error: ApiError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), vars(other)) == (ApiError, str(error), vars(error))


@pytest.mark.parametrize("replicas", [[], ["--ray-replicas", 3]])
def test_fewer_at_most_than_at_least_is_refused(run: Run, replicas: list[object]) -> None:
    status, _, errors = run("serve", "--model", "demo", "--store", "kv", *replicas, "--ray-max-replicas", 2)
    assert status == 1
    assert "--ray-max-replicas is 2; it goes with --ray-replicas, and is at least as many" in only_line(errors)
