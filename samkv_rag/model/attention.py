"""Our attention, registered with transformers, so that a pass decides what each token sees.

A decoder layer hands its queries, keys and values, after RoPE, to the function registered under
its attention name. Ours passes them on to the ``attend`` callable of the current forward pass;
without one (somebody calls the model directly) it is transformers' SDPA.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "samkv"
_FEW_QUERIES = 64


class Attend(Protocol):
    """What a forward pass does at each layer's attention."""

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, /
    ) -> torch.Tensor:
        """Return the attention's output ``[batch, heads, tokens, head_dim]``.

        ``query`` is ``[batch, heads, tokens, head_dim]``, ``key`` and ``value`` are
        ``[batch, kv_heads, tokens, head_dim]``, all after RoPE.
        """


def samkv_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    attend: Attend | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function in transformers' calling convention."""
    if attend is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return output, None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend(int(module.layer_idx), query, key, value, scaling)  # type: ignore[arg-type]
    return output.transpose(1, 2).contiguous(), None


def register_attention() -> None:
    """Make ``attn_implementation="samkv"`` known; a custom attention without its mask gets none."""
    AttentionInterface.register(ATTENTION_NAME, samkv_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
) -> torch.Tensor:
    """Grouped-query attention, ``[batch, heads, queries, head_dim]``.

    ``mask`` is SDPA's, ``[queries, keys]``. ``is_causal`` takes the queries as the last of the keys.
    """
    if mask is None and (flash := _flash_attention(query)) is not None:
        states = (state.transpose(1, 2) for state in (query, key, value))
        output: torch.Tensor = flash(*states, softmax_scale=scaling, causal=is_causal)
        return output.transpose(1, 2)
    num_queries, num_keys = query.shape[2], key.shape[2]
    if is_causal and num_queries != num_keys:
        if num_queries > _FEW_QUERIES and num_keys <= 2 * num_queries:
            return _continuing_attention(query, key, value, scaling)
        mask, is_causal = _continuing(num_queries, num_keys, query.device), False
    # On CUDA, SDPA's flash kernel takes no mask and its memory-efficient one no grouped heads.
    if not is_causal and query.shape[2] <= _FEW_QUERIES and (mask is not None or not query.is_cuda):
        return _few_queries_attention(query, key, value, scaling, mask)
    if mask is not None and query.is_cuda:
        key, value = (_repeat_heads(states, query.shape[1]) for states in (key, value))
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, scale=scaling, enable_gqa=True
    )


def fold_heads(query: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """``[batch, heads, queries, head_dim]`` to ``[batch, kv_heads, group · queries, head_dim]``.

    The heads of a group read the same keys, so their queries may as well be rows of one head.
    """
    batch, _, _, head_dim = query.shape
    return query.reshape(batch, num_kv_heads, -1, head_dim)


def _repeat_heads(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """``[batch, kv_heads, tokens, head_dim]`` to ``[batch, num_heads, tokens, head_dim]``, a copy per query head."""
    return states.repeat_interleave(num_heads // states.shape[1], dim=1)


def _few_queries_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, mask: torch.Tensor | None
) -> torch.Tensor:
    """Heads folded: on a CPU, SDPA arranges the keys once a group instead of once a head, up to twice as fast."""
    rows = fold_heads(query, key.shape[1])
    folded_mask = None if mask is None else mask.repeat(query.shape[1] // key.shape[1], 1)
    output = scaled_dot_product_attention(rows, key, value, attn_mask=folded_mask, scale=scaling)
    return output.reshape(query.shape)  # not a view: on CUDA, kernels return heads and tokens in another order


def _continuing_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Causal attention of the last tokens of the keys, without a mask, of which SDPA would compute both halves.

    SDPA takes the queries as the first of the keys; queries of zeros put in front move them to the end.
    """
    num_before = key.shape[2] - query.shape[2]
    output = attention(pad(query, (0, 0, num_before, 0)), key, value, scaling, is_causal=True)
    return output[:, :, num_before:]


def _continuing(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=num_keys - num_queries)


def _flash_attention(query: torch.Tensor) -> Any:
    """flash-attn's function where it is installed and takes these tensors, else None."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    return _import_flash_attention()


@cache
def _import_flash_attention() -> Any:
    try:
        return import_module("flash_attn").flash_attn_func
    except ImportError:
        return None
