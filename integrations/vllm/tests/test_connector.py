"""The connector: which KV goes to which slots, which requests get it, and which requests fail."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_vllm
import pytest
import torch
from fake_vllm import Attention, Blocks, KVConnectorRole, Options, Request

from samkv_rag.handover import Handover
from samkv_vllm.handover import heads
from support import tiny
from support.engines import MakeEngine

SamKVConnector: Any = fake_vllm.import_connector().SamKVConnector
CHUNKS = [tiny.text(seed) for seed in range(4)]
BLOCK_IDS = [7, 3, 30, 12, 5, 21, 9, 2]
LAYER = "language_model.model.layers.{}.self_attn.attn"


@pytest.fixture
def handover(make_engine: MakeEngine, tmp_path: Path) -> Iterator[Handover]:
    """A tiny model's handover, saved in its file."""
    found = make_engine(chunks=CHUNKS).generate(tiny.rag_prompt(CHUNKS), handover=True).handover
    assert found is not None
    with found.saved(tmp_path):
        yield found


def connector(role: str = "WORKER", **options: Any) -> Any:
    vllm_config, kv_cache_config = Options(**options).configs()
    return SamKVConnector(vllm_config, KVConnectorRole[role], kv_cache_config)


def connectors(folder: Path, **options: Any) -> list[Any]:
    """Return the scheduler's connector and a worker's."""
    return [connector(role, folder=str(folder), **options) for role in KVConnectorRole.__members__]


def attentions(handover: Handover, num_kv_heads: int = 2, block_size: int = 16) -> dict[str, Any]:
    """Return vLLM's layers by name; one has no cache, like layers without attention."""
    num_layers, *_, head_dim = handover.keys.shape
    caches = {LAYER.format(i): Attention(num_kv_heads, head_dim, block_size) for i in range(num_layers)}
    return {"model.layers.0.mlp": SimpleNamespace(), **caches}


def asked(handover: Handover, **changes: Any) -> Request:
    given = {"kv_transfer_params": {"samkv_key": handover.key}, "cache_salt": handover.key}
    return Request(**({"prompt_token_ids": [*handover.token_ids]} | given | changes))


def scheduled(scheduler: Any, request: Request, block_ids: list[int], num_computed: int = 0) -> int:
    """Schedule a request and return how many tokens will be loaded."""
    num_external, is_async = scheduler.get_num_new_matched_tokens(request, num_computed)
    assert not is_async
    assert num_external is not None
    scheduler.update_state_after_alloc(request, Blocks(block_ids), num_external)
    return num_external


def step(scheduler: Any, worker: Any, layers: dict[str, Any]) -> set[int]:
    """Run one step of vLLM, which sends the metadata to another process, and return the blocks that failed."""
    worker.bind_connector_metadata(pickle.loads(pickle.dumps(scheduler.build_connector_meta(SimpleNamespace()))))
    worker.start_load_kv(SimpleNamespace(no_compile_layers=layers, attn_metadata={}))
    return set(worker.get_block_ids_with_load_errors())


@pytest.mark.parametrize("block_size", [1, 16, 32, 128])
def test_a_request_gets_what_was_handed_over_and_nothing_else_changes(
    handover: Handover, tmp_path: Path, block_size: int
) -> None:
    scheduler, worker = connectors(tmp_path, block_size=block_size)
    num_tokens = len(handover.token_ids) - 1
    block_ids = torch.randperm(200, generator=torch.Generator().manual_seed(0))[: -(-num_tokens // block_size)].tolist()
    layers = attentions(handover, block_size=block_size)
    assert scheduled(scheduler, asked(handover), block_ids) == num_tokens
    assert step(scheduler, worker, layers) == set()
    for number in range(4):
        layer = layers[LAYER.format(number)]
        keys, values = layer.held(block_ids, num_tokens)
        torch.testing.assert_close((keys, values), (handover.keys[number], handover.values[number]), atol=0, rtol=0)
        assert int(layer.kv_cache.abs().sum((1, 3)).count_nonzero()) == num_tokens
    before = {name: layer.kv_cache.clone() for name, layer in layers.items() if isinstance(layer, Attention)}
    assert step(scheduler, worker, layers) == set()  # nothing is loaded twice
    assert all(torch.equal(layers[name].kv_cache, cache) for name, cache in before.items())


def test_tokens_already_in_the_blocks_are_not_loaded_again(handover: Handover, tmp_path: Path) -> None:
    """After a preemption, for example: the request's own blocks are in the prefix cache."""
    scheduler, worker = connectors(tmp_path)
    num_tokens, layers = len(handover.token_ids) - 1, attentions(handover)
    assert scheduled(scheduler, asked(handover), BLOCK_IDS, num_computed=32) == num_tokens - 32
    assert step(scheduler, worker, layers) == set()
    keys, _ = layers[LAYER.format(3)].held(BLOCK_IDS, num_tokens)
    assert not keys[:32].any()
    torch.testing.assert_close(keys[32:], handover.keys[3, 32:], atol=0, rtol=0)
    assert scheduled(scheduler, asked(handover), BLOCK_IDS, num_computed=num_tokens) == 0
    assert scheduler.build_connector_meta(SimpleNamespace()).loads == []


def test_other_requests_are_not_affected(handover: Handover, tmp_path: Path) -> None:
    scheduler = connector("SCHEDULER", folder=str(tmp_path))
    for params in (None, {}, {"do_remote_prefill": True}):
        assert scheduled(scheduler, asked(handover, kv_transfer_params=params), BLOCK_IDS) == 0
    assert scheduler.build_connector_meta(SimpleNamespace()).loads == []


def test_a_prompt_that_the_other_engine_has_computed_itself_is_no_answer(handover: Handover, tmp_path: Path) -> None:
    scheduler, worker = connectors(tmp_path)
    request = asked(handover, cache_salt=None)
    assert scheduled(scheduler, request, BLOCK_IDS, num_computed=request.num_prompt_tokens - 1) == 0
    assert step(scheduler, worker, attentions(handover))


@pytest.mark.parametrize(
    "changes",
    [
        {"cache_salt": None},
        {"cache_salt": "0" * 64},
        {"prompt_token_ids": [5] * 40},
        *(
            {"kv_transfer_params": {"samkv_key": key}, "cache_salt": key}
            for key in ("0" * 64, "../x", "", None, 7, ["a"])
        ),
    ],
    ids=str,
)
def test_a_request_that_cannot_have_the_kv_fails_alone(
    handover: Handover, tmp_path: Path, changes: dict[str, Any]
) -> None:
    scheduler, worker = connectors(tmp_path)
    layers, good = attentions(handover), [31, 32, 33, 34, 35, 36, 37, 38]
    request = asked(handover, **changes)
    num_tokens = scheduled(scheduler, request, BLOCK_IDS)
    assert num_tokens == request.num_prompt_tokens - 1  # never computed from the retained tokens alone
    scheduled(scheduler, asked(handover), good)
    failed = step(scheduler, worker, layers)
    assert set(BLOCK_IDS[: -(-num_tokens // 16)]) <= failed <= set(BLOCK_IDS), "its own blocks and no others"
    layer = layers[LAYER.format(0)]
    assert not layer.kv_cache[BLOCK_IDS].any()
    torch.testing.assert_close(layer.held(good, len(handover.token_ids) - 1)[0], handover.keys[0], atol=0, rtol=0)
    assert worker.get_block_ids_with_load_errors() == set()


def test_another_models_handover_is_refused(handover: Handover, tmp_path: Path) -> None:
    for options, sizes in (({"num_layers": 5}, {}), ({}, {"num_kv_heads": 4}), ({}, {"num_kv_heads": 1})):
        scheduler, worker = connectors(tmp_path, **options)
        scheduled(scheduler, asked(handover), BLOCK_IDS)
        layers = attentions(handover, **sizes)
        assert step(scheduler, worker, layers)
        assert not layers[LAYER.format(0)].kv_cache.any()


def test_each_of_several_workers_has_its_heads(handover: Handover, tmp_path: Path) -> None:
    num_tokens = len(handover.token_ids) - 1
    for rank, size, head in ((0, 2, 0), (1, 2, 1), (1, 4, 0), (2, 4, 1)):
        scheduler, worker = connectors(tmp_path, rank=rank, tensor_parallel_size=size)
        scheduled(scheduler, asked(handover), BLOCK_IDS)
        layers = attentions(handover, num_kv_heads=1)
        assert step(scheduler, worker, layers) == set()
        keys, _ = layers[LAYER.format(1)].held(BLOCK_IDS, num_tokens)
        torch.testing.assert_close(keys, handover.keys[1, :, head : head + 1], atol=0, rtol=0)
    assert [heads(8, 4, rank, 2) for rank in (0, 1)] == [slice(0, 4), slice(4, 8)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"groups": [{"sliding_window": 4096}]}, "layers see a window"),
        ({"groups": [{"attention_chunk_size": 8192}]}, "layers see a window"),
        ({"groups": [{}, {}]}, "layers see a window"),
        ({"kv_load_failure_policy": "recompute"}, "it must be 'fail'"),
        ({"decode_context_parallel_size": 2}, "it must be 1"),
        ({"folder": None}, "has no 'folder'"),
    ],
)
def test_vllm_does_not_start_if_answers_would_be_wrong(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    connector(folder=str(tmp_path))
    with pytest.raises(ValueError, match=words):
        connector(**({"folder": str(tmp_path)} | options))
