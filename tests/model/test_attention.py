"""Attention's conventions, and what of the cached KV is in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.model import attention as attention_module
from samkv_rag.model.attention import attention
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import PrefillMethod
from support import tiny


def slow_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal, grouped, written out; the queries are the last of the keys."""
    groups = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = query @ keys.transpose(-1, -2) * scaling
    first = key.shape[2] - query.shape[2]
    for i in range(query.shape[2]):
        logits[:, :, i, first + i + 1 :] = -torch.inf
    return logits.softmax(-1) @ values


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 12), (5, 12), (12, 12), (70, 90), (70, 200), (90, 90)])
def test_causal_attention_takes_the_queries_as_the_last_of_the_keys(num_queries: int, num_keys: int) -> None:
    query = torch.randn(1, 6, num_queries, 8)
    key, value = torch.randn(1, 2, num_keys, 8), torch.randn(1, 2, num_keys, 8)
    found = attention(query, key, value, 0.3, is_causal=True)
    torch.testing.assert_close(found, slow_attention(query, key, value, 0.3))


def test_flash_attention_is_called_by_its_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn wants ``[batch, tokens, heads, head_dim]`` and aligns causality to the end."""

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float, causal: bool) -> torch.Tensor:
        assert causal
        return slow_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), softmax_scale).transpose(1, 2)

    monkeypatch.setattr(attention_module, "_flash_attention", lambda query: stand_in)
    query, key, value = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 12, 8), torch.randn(1, 2, 12, 8)
    found = attention(query, key, value, 0.3, is_causal=True)
    torch.testing.assert_close(found, slow_attention(query, key, value, 0.3))


@pytest.mark.parametrize("num_queries", [5, 70])
def test_masked_attention_needs_no_grouped_heads(monkeypatch: pytest.MonkeyPatch, num_queries: int) -> None:
    """As on CUDA, where a mask together with grouped heads would fall to the slow kernel."""

    class OnCuda(torch.Tensor):
        is_cuda = True

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, enable_gqa: bool = False, **options: Any) -> Any:
        assert q.shape[1] == k.shape[1] == v.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=options["attn_mask"], scale=0.3)

    monkeypatch.setattr(attention_module, "scaled_dot_product_attention", sdpa)
    query, key, value = torch.randn(1, 6, num_queries, 8), torch.randn(1, 2, 90, 8), torch.randn(1, 2, 90, 8)
    seen = torch.arange(90)[None, :] <= torch.arange(90 - num_queries, 90)[:, None]
    found = attention(query.as_subclass(OnCuda), key, value, 0.3, mask=seen)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), slow_attention(query, key, value, 0.3))


def test_a_buffer_grows_and_keeps_what_it_holds() -> None:
    buffer = KVBuffer(num_layers=2, reserve_tokens=3)
    parts = [torch.randn(1, 2, n, 4) for n in (5, 1, 1, 1, 1, 30, 1)]
    for layer in range(2):
        for part in parts:
            keys, values = buffer.append(layer, part, -part)
    expected = torch.cat(parts, dim=2)
    assert torch.equal(keys, expected)
    assert torch.equal(values, -expected)
    assert buffer.cache_length == 40
    assert buffer.nbytes == 2 * 2 * expected.nbytes


@pytest.mark.parametrize(
    "method",
    [
        tiny.method(score_layers=(0.5, 1.0)),  # scouting reads every layer
        tiny.method(score_layers=(0.5, 1.0), recompute_view="all"),
        tiny.method("samkv"),
    ],
    ids=tiny.method_id,
)
def test_one_layer_of_cached_kv_is_in_memory_at_a_time(
    make_engine: Callable[..., SamKVEngine], monkeypatch: pytest.MonkeyPatch, method: PrefillMethod, tmp_path: Any
) -> None:
    engine = make_engine(store=tmp_path, method=method)
    chunks = [tiny.text(seed) for seed in range(4)]
    engine.add_chunks(chunks)
    alive: dict[int, list[weakref.ref[torch.Tensor]]] = {}
    places: set[int] = set()
    most_layers = 0
    read = engine._library.read

    class Watched:
        def __init__(self, reader: Any) -> None:
            self._reader = reader

        def __getattr__(self, name: str) -> Any:
            return getattr(self._reader, name)

        def layer(self, layer: int, tokens: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = self._reader.layer(layer, tokens)
            self._note(layer, keys, values)
            return keys, values

        def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
            self._reader.fill_layer(layer, keys, values)
            places.add(keys.untyped_storage().data_ptr())
            self._note(layer, keys, values)

        def _note(self, layer: int, *states: torch.Tensor) -> None:
            nonlocal most_layers
            alive.setdefault(layer, []).extend(weakref.ref(tensor) for tensor in states)
            held = [number for number, refs in alive.items() if any(ref() is not None for ref in refs)]
            most_layers = max(most_layers, len(held))

    monkeypatch.setattr(engine._library, "read", lambda texts: [(Watched(r), hit) for r, hit in read(texts)])
    metrics = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=3).metrics
    assert metrics.chunks_hit == 4
    assert most_layers == 1
    assert len(alive) == engine.decoder.num_layers
    assert len(places) <= 2  # whole chunks go into one place a pass, layer after layer
    assert metrics.kv_bytes_resident < 0.6 * metrics.kv_bytes_full
