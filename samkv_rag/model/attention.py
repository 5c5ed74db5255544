"""Our attention, registered with transformers, so that each forward pass decides what a token sees.

A decoder layer calls the function registered under its attention name with its queries, keys and values,
after RoPE. Ours calls the ``attend`` function of the current forward pass. Without one (the model is called
directly) it falls back to transformers' SDPA.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "samkv"
_SEVERAL_QUERIES, _FEW_QUERIES = 8, 64
_BLOCK_QUERIES = 32
"""The weights of so many queries fit into a processor's cache."""


@dataclass(frozen=True)
class LayerSpec:
    """How a layer attends."""

    scaling: float
    """Multiplies the products of queries and keys."""
    window: int | None = None
    """How many positions a token sees, its own included; None: all before it."""
    softcap: float | None = None
    """Scaled products are squashed below this value (Gemma 2)."""
    sinks: torch.Tensor | None = None
    """``[heads]``: an extra logit in every softmax, for attending to nothing (gpt-oss)."""


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, LayerSpec], torch.Tensor]
"""A forward pass's attention, ``attend(layer, query, key, value, spec)``, all after RoPE.

``query`` and the result are ``[batch, heads, tokens, head_dim]``, ``key`` and ``value``
``[batch, kv_heads, tokens, head_dim]``.
"""


def samkv_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sliding_window: int | None = None,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in transformers' calling convention."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attend is not None:
        spec = LayerSpec(scaling, sliding_window, softcap, s_aux)
        output = attend(int(module.layer_idx), query, key, value, spec)  # type: ignore[arg-type]
        return output.transpose(1, 2).contiguous(), None
    if softcap is None and s_aux is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    # SDPA has no softcap and no sinks; the family's own attention has.
    seen = _continuing(query.shape[2], key.shape[2], key.device) if attention_mask is None else attention_mask
    mask = additive(seen, query.dtype)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    output, _ = eager(module, query, key, value, mask, scaling=scaling, softcap=softcap, **kwargs)
    return output, None


def use_in(model: Any) -> None:
    """Replace the attention of ``model`` by ours."""
    AttentionInterface.register(_NAME, samkv_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)  # unknown attentions get no mask from transformers
    model.set_attn_implementation(_NAME)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spec: LayerSpec,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Compute grouped-query attention, ``[batch, heads, queries, head_dim]``; the layer's window is ignored.

    ``mask`` is additive, ``[queries, keys]``. With ``is_causal`` the queries are the last of the keys.
    """
    is_slow = query.shape[2] >= _SEVERAL_QUERIES and _is_slow_in_sdpa(query.device.type, query.dtype)
    if spec.softcap is not None or spec.sinks is not None or is_slow:
        return _written_out(query, key, value, spec, mask, is_causal)
    if mask is None and (flash := _flash_attention(query.is_cuda, query.dtype)) is not None:
        states = (state.transpose(1, 2) for state in (query, key, value))
        found: torch.Tensor = flash(*states, softmax_scale=spec.scaling, causal=is_causal)
        return found.transpose(1, 2)
    num_queries, num_keys = query.shape[2], key.shape[2]
    if is_causal and num_queries != num_keys:
        if num_queries > _FEW_QUERIES and num_keys <= 2 * num_queries:
            # SDPA aligns queries with the first keys. Zeros in front of them align them with the last ones, without
            # a mask, of which SDPA would compute both halves.
            num_before = num_keys - num_queries
            padded = pad(query, (0, 0, num_before, 0))
            return attention(padded, key, value, spec, is_causal=True)[:, :, num_before:]
        mask, is_causal = _continuing(num_queries, num_keys, query.device), False
    # On CUDA, SDPA's flash kernel takes no mask and its memory-efficient one no grouped heads.
    if not is_causal and num_queries <= _FEW_QUERIES and (mask is not None or not query.is_cuda):
        # Heads folded: on a CPU, SDPA arranges the keys once a group instead of once a head, up to twice as fast.
        folded_mask = None if mask is None else mask.repeat(query.shape[1] // key.shape[1], 1)
        rows = fold_heads(query, key.shape[1])
        output = scaled_dot_product_attention(rows, key, value, attn_mask=folded_mask, scale=spec.scaling)
        return output.reshape(query.shape)  # not a view: on CUDA, kernels return heads and tokens in another order
    if mask is not None and query.is_cuda:
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=spec.scaling, enable_gqa=True
    )


class Block(NamedTuple):
    """Queries that see the same run of keys."""

    queries: slice
    keys: slice
    mask: torch.Tensor | None
    """``[queries, keys]``, additive; None: each query sees all keys, or with ``is_causal`` those before it."""
    is_causal: bool


class Visibility:
    """Which keys each query sees: those at its own and at lower positions, within a layer's window.

    ``queries`` and ``keys`` are rising positions in the prompt, on the host; dropped tokens leave gaps.
    """

    def __init__(self, queries: torch.Tensor, keys: torch.Tensor) -> None:
        self.queries, self.keys = queries, keys
        self._blocks: dict[int | None, list[Block]] = {}

    def blocks(self, window: int | None, like: torch.Tensor) -> list[Block]:
        """Return the queries in blocks, with masks like ``like``; computed once for all layers of a ``window``."""
        if window not in self._blocks:
            self._blocks[window] = list(self._cut(window, like))
        return self._blocks[window]

    def _cut(self, window: int | None, like: torch.Tensor) -> Iterator[Block]:
        queries, keys, start = self.queries, self.keys, 0
        if not len(queries):
            return
        reach = int(queries[-1] - keys[0]) + 1
        sees_all = window is None or window >= reach
        width = reach if window is None else min(window, reach)
        # Blocks as long as the window compute at most twice the products that are needed.
        for at in torch.split(queries, len(queries) if sees_all else width):
            first, last = torch.searchsorted(keys, torch.stack((at[0] - width + 1, at[-1] + 1))).tolist()
            seen, mask = keys[first:last], None
            is_causal = sees_all and torch.equal(seen[len(seen) - len(at) :], at)
            if not is_causal and len(at) > 1:
                back = at.to(like.device)[:, None] - seen.to(like.device)
                mask = additive((back >= 0) & (back < width), like.dtype)
            yield Block(slice(start, start + len(at)), slice(first, last), mask, is_causal and len(at) > 1)
            start += len(at)


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec, visibility: Visibility
) -> torch.Tensor:
    """Compute a layer's attention within its window, ``[batch, heads, queries, head_dim]``.

    Leading keys of ``visibility`` may be missing from ``key``, where the layer's window has passed them.
    """
    gone = len(visibility.keys) - key.shape[2]
    parts = []
    for queries, keys, mask, is_causal in visibility.blocks(spec.window, query):
        seen = slice(keys.start - gone, keys.stop - gone)
        parts.append(attention(query[:, :, queries], key[:, :, seen], value[:, :, seen], spec, mask, is_causal))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) if parts else torch.empty_like(query)


def additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a boolean mask as SDPA adds it: 0 where True, else -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def attention_weights(products: torch.Tensor, spec: LayerSpec, mask: torch.Tensor | None) -> torch.Tensor:
    """Return the layer's softmax of scaled ``products`` ``[..., kv_heads, group, queries, keys]``, overwriting them.

    ``mask`` is additive; it may be that of the last keys alone.
    """
    if spec.softcap is not None:
        products = products.div_(spec.softcap).tanh_().mul_(spec.softcap)
    if mask is not None:
        products[..., -mask.shape[-1] :] += mask
    if spec.sinks is None:
        return products.softmax(-1)
    sinks = spec.sinks.to(products.dtype).view(*products.shape[-4:-2], 1, 1).expand(*products.shape[:-1], 1)
    return torch.cat((products, sinks), dim=-1).softmax(-1)[..., :-1]


def _written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spec: LayerSpec,
    mask: torch.Tensor | None,
    is_causal: bool,
) -> torch.Tensor:
    """Compute attention by plain products, a few queries at a time, because all their weights are in memory.

    On a CPU, products of queries and keys are at least float32, as in SDPA.
    """
    num_queries, num_keys, num_kv_heads = query.shape[2], key.shape[2], key.shape[1]
    dtype = torch.promote_types(query.dtype, torch.float32) if query.device.type == "cpu" else query.dtype
    keys, output = key.to(dtype).transpose(-1, -2), torch.empty_like(query)
    for start in range(0, num_queries, _BLOCK_QUERIES):
        block = slice(start, min(start + _BLOCK_QUERIES, num_queries))
        num_rows = block.stop - start
        stop = num_keys - num_queries + block.stop if is_causal else num_keys
        own = None if mask is None else mask[block]
        if is_causal:  # the block's own keys; it sees all before them
            own = additive(_continuing(num_rows, num_rows, query.device), dtype)
        rows = fold_heads(query[:, :, block], num_kv_heads).to(dtype) * spec.scaling
        products = torch.unflatten(rows @ keys[..., :stop], 2, (-1, num_rows))
        weights = attention_weights(products, spec, own).to(value.dtype).flatten(2, 3)
        output[:, :, block] = torch.unflatten(weights @ value[:, :, :stop], 2, (-1, num_rows)).flatten(1, 2)
    return output


def fold_heads(query: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """Reshape ``[batch, heads, queries, head_dim]`` to ``[batch, kv_heads, group · queries, head_dim]``.

    The heads of a group read the same keys, so their queries can be rows of one head.
    """
    return query.reshape(query.shape[0], num_kv_heads, -1, query.shape[-1])


def _continuing(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Boolean causal mask ``[queries, keys]`` of queries that are the last of the keys."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=num_keys - num_queries)


@cache
def _is_slow_in_sdpa(device_type: str, dtype: torch.dtype) -> bool:
    """Whether plain products of several queries are faster: without AMX, SDPA is as slow in bfloat16 as in float32."""
    has_products = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return device_type == "cpu" and dtype == torch.bfloat16 and has_products


@cache
def _flash_attention(is_cuda: bool, dtype: torch.dtype) -> Any:
    """Return flash-attn's function if it is installed and takes such tensors, else None."""
    if not is_cuda or dtype not in (torch.float16, torch.bfloat16):
        return None
    try:
        return import_module("flash_attn").flash_attn_func
    except ImportError:
        return None
