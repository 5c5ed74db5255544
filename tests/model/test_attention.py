"""Attention against its definition, the KV buffer, and how much cached KV is in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from samkv_rag import SamKVEngine
from samkv_rag.model import attention as attention_module
from samkv_rag.model.attention import LayerSpec, Visibility, attention, causal_attention
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import PrefillMethod, Scout
from support import tiny


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention by its definition; ``seen`` is ``[queries, keys]``, None: the queries are the last of the keys."""
    num_queries, num_keys, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    seen = torch.ones(num_queries, num_keys).tril(num_keys - num_queries).bool() if seen is None else seen
    products = query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * spec.scaling
    if spec.softcap:
        products = spec.softcap * (products / spec.softcap).tanh()
    sinks = torch.full(query.shape[1:2], -torch.inf) if spec.sinks is None else spec.sinks
    logits = torch.cat(
        (products.masked_fill(~seen, -torch.inf), sinks.view(-1, 1, 1).expand(*products.shape[:3], 1)), -1
    )
    return logits.softmax(-1)[..., :-1] @ value.repeat_interleave(groups, 1)


def states(num_queries: int, num_keys: int, batch: int = 1) -> list[torch.Tensor]:
    """Random query, key and value of 6 heads, 2 of them for keys and values."""
    shapes = ((6, num_queries), (2, num_keys), (2, num_keys))
    return [torch.randn(batch, heads, tokens, 8) for heads, tokens in shapes]


@pytest.fixture(params=["SDPA", "products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of this machine and of others to attend with several queries."""
    monkeypatch.setattr(attention_module, "_is_slow_in_sdpa", lambda *_: request.param == "products")
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 12), (5, 12), (12, 12), (70, 90), (70, 200), (90, 90)])
def test_causal_attention_takes_the_queries_as_the_last_of_the_keys(num_queries: int, num_keys: int) -> None:
    query, key, value = states(num_queries, num_keys)
    found = attention(query, key, value, LayerSpec(0.3), is_causal=True)
    torch.testing.assert_close(found, written_out(query, key, value, LayerSpec(0.3)))


@pytest.mark.usefixtures("way")
def test_large_logits_lose_nothing_in_bfloat16() -> None:
    """A bias that all keys share makes products of some hundreds, which bfloat16 would round to whole numbers."""
    query, key, value = states(70, 90)
    query, key, value = (query + 20).bfloat16(), (key + 5).bfloat16(), value.bfloat16()
    found = attention(query, key, value, LayerSpec(0.3), is_causal=True)
    expected = written_out(query.float(), key.float(), value.float(), LayerSpec(0.3))
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.01)


def test_flash_attention_is_called_by_its_conventions(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn wants ``[batch, tokens, heads, head_dim]`` and aligns causality to the end."""

    def stand_in(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax_scale: float, causal: bool) -> torch.Tensor:
        assert causal
        query, key, value = (part.transpose(1, 2) for part in (q, k, v))
        return written_out(query, key, value, LayerSpec(softmax_scale)).transpose(1, 2)

    monkeypatch.setattr(attention_module, "_flash_attention", lambda *_: stand_in)
    query, key, value = states(5, 12)
    found = attention(query, key, value, LayerSpec(0.3), is_causal=True)
    torch.testing.assert_close(found, written_out(query, key, value, LayerSpec(0.3)))


@pytest.mark.parametrize("num_queries", [5, 70])
def test_masked_attention_needs_no_grouped_heads(monkeypatch: pytest.MonkeyPatch, num_queries: int) -> None:
    """On CUDA a mask together with grouped heads would take the slow kernel."""

    class OnCuda(torch.Tensor):
        is_cuda = True

    def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, enable_gqa: bool = False, **options: Any) -> Any:
        assert q.shape[1] == k.shape[1] == v.shape[1]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=options["attn_mask"], scale=0.3)

    monkeypatch.setattr(attention_module, "scaled_dot_product_attention", sdpa)
    query, key, value = states(num_queries, 90)
    seen = torch.arange(90)[None, :] <= torch.arange(90 - num_queries, 90)[:, None]
    found = attention(query.as_subclass(OnCuda), key, value, LayerSpec(0.3), mask=seen)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), written_out(query, key, value, LayerSpec(0.3)))


SPECS = {
    "full": LayerSpec(0.3),
    "window": LayerSpec(0.3, window=12),
    "window of one": LayerSpec(0.3, window=1),
    "window past the beginning": LayerSpec(0.3, window=1000),
    "capped": LayerSpec(0.3, softcap=0.5),
    "sinks": LayerSpec(0.3, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0, 1.0, 2.0])),
    "all": LayerSpec(0.3, window=9, softcap=0.7, sinks=torch.tensor([0.5, -1.0, 3.0, 0.0, 1.0, 2.0])),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("num_gone", [0, 20])
@pytest.mark.parametrize("num_queries", [1, 7, 80])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_attention_by_position_equals_its_definition(spec: LayerSpec, num_queries: int, num_gone: int) -> None:
    """Positions have gaps, queries are among the keys, and the first keys may have been dropped."""
    generator = torch.Generator().manual_seed(num_queries)
    keys_at = torch.randperm(300, generator=generator)[:130].sort().values
    queries_at = keys_at[torch.randperm(130, generator=generator)[:num_queries].sort().values]
    if num_gone:
        spec = replace(spec, window=spec.window or 1000)
        keys_at = torch.cat((torch.arange(-num_gone, 0) - 2000, keys_at))
    query, key, value = states(len(queries_at), len(keys_at), batch=2)
    visibility = Visibility(queries_at, keys_at)
    found = causal_attention(query, key[:, :, num_gone:], value[:, :, num_gone:], spec, visibility)
    back = queries_at[:, None] - keys_at
    seen = (back >= 0) & (back < (spec.window or 1000))
    torch.testing.assert_close(found, written_out(query, key, value, spec, seen))


def test_windows_are_cut_into_blocks_that_compute_little_more_than_they_see() -> None:
    positions = torch.arange(1000)
    blocks = Visibility(positions, positions).blocks(50, torch.zeros(1))
    computed = sum((b.queries.stop - b.queries.start) * (b.keys.stop - b.keys.start) for b in blocks)
    assert 1000 * 50 * 0.97 < computed < 1000 * 50 * 2


def test_a_buffer_drops_what_no_window_will_see_again() -> None:
    buffer, keys = KVBuffer(3, reserve_tokens=2), torch.randn(1, 2, 6, 4)
    buffer.positions = torch.tensor([0, 1, 5, 8, 9, 12])
    for layer in range(3):
        buffer.append(layer, keys, -keys)
    buffer.narrow([None, 5, 1])  # the next token is at 13 and sees 9 to 13, or itself
    assert [len(buffer.layer(layer)[0][0, 0]) for layer in range(3)] == [6, 2, 0]
    assert torch.equal(buffer.layer(1)[1], -keys[:, :, 4:])
    assert buffer.nbytes == 2 * (6 + 2) * keys[:, :, :1].nbytes


def test_a_buffer_grows_and_keeps_its_tokens() -> None:
    buffer = KVBuffer(num_layers=1, reserve_tokens=3)
    parts = [torch.randn(1, 2, n, 4) for n in (5, 1, 1, 1, 1, 30, 1)]
    for part in parts:
        keys, values = buffer.append(0, part, -part)
    assert torch.equal(keys, torch.cat(parts, dim=2))
    assert torch.equal(values, -keys)
    assert (keys.shape[2], buffer.nbytes) == (40, 2 * keys.nbytes)


@pytest.mark.parametrize(
    "method",
    [
        tiny.method(score_layers=(0.5, 1.0)),  # scouting reads every layer
        tiny.method(score_layers=(0.5, 1.0), recompute_view="all"),
        tiny.method("samkv"),
    ],
    ids=tiny.method_id,
)
def test_a_layer_of_cached_kv_and_the_next_are_in_memory_at_a_time(
    make_engine: Callable[..., SamKVEngine], monkeypatch: pytest.MonkeyPatch, method: PrefillMethod, tmp_path: Any
) -> None:
    engine = make_engine(store=tmp_path, method=method)
    chunks = [tiny.text(seed) for seed in range(4)]
    engine.add_chunks(chunks)
    alive: dict[int, list[weakref.ref[torch.Tensor]]] = {}
    passes: list[list[tuple[int, int]]] = []  # the layers of each that read whole chunks, and where to
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

        def fill_layer(self, layer: int, keys: torch.Tensor, values: torch.Tensor | None) -> None:
            self._reader.fill_layer(layer, keys, values)
            if values is None:  # a refresh reads keys alone
                self._note(layer, keys)
                return
            if not passes or layer < passes[-1][-1][0]:
                passes.append([])
            passes[-1].append((layer, keys.untyped_storage().data_ptr()))
            self._note(layer, keys, values)

        def _note(self, layer: int, *states: torch.Tensor) -> None:
            nonlocal most_layers
            alive.setdefault(layer, []).extend(weakref.ref(tensor) for tensor in states)
            held = [number for number, refs in alive.items() if any(ref() is not None for ref in refs)]
            most_layers = max(most_layers, len(held))

    monkeypatch.setattr(engine._library, "read", lambda *asked: [(Watched(r), hit) for r, hit in read(*asked)])
    metrics = engine.generate(tiny.rag_prompt(chunks), max_new_tokens=3).metrics
    assert metrics.chunks_hit == 4
    assert most_layers <= 2
    assert len(alive) == engine.decoder.num_layers
    for of_pass in passes:
        assert len({place for _, place in of_pass}) <= 2  # which take turns
    if isinstance(method, Scout):
        assert len(passes) == (2 if method.recompute_view == "all" else 1)  # scouting, then recomputing
    assert metrics.kv_bytes_resident < 0.6 * metrics.kv_bytes_full
