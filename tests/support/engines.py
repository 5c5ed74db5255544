"""Engines of tiny models: what they are asked about, what a prefill leaves, and the slow path that it must equal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from samkv_rag import SamKVEngine
from samkv_rag.model.kv_buffer import KVBuffer
from samkv_rag.prefill import Clock, PrefillContext, Prefilled, PrefillMethod
from samkv_rag.prompt.layout import PromptLayout
from support import tiny

MakeEngine = Callable[..., SamKVEngine]
CHUNKS = [tiny.text(seed) for seed in range(4)]
PROMPT = tiny.rag_prompt(CHUNKS)


def together(engine: SamKVEngine, asked: Iterable[dict[str, Any]], **options: Any) -> list[Any]:
    """What comes of requests made at once, from an event loop: results, and errors in the place of results."""

    async def ask() -> list[Any]:
        return await asyncio.gather(*(engine.agenerate(**(options | one)) for one in asked), return_exceptions=True)

    return asyncio.run(ask())


class Prefill(NamedTuple):
    """What a prefill left."""

    prefilled: Prefilled
    layout: PromptLayout
    """The prompt, its chunks where the method placed them."""
    logits: torch.Tensor
    """``[vocab]``, of the first answer token"""
    kv: KVBuffer


def layout_of(engine: SamKVEngine, prompt: Any) -> PromptLayout:
    """A prompt with its stored chunks."""
    return engine._assembler.with_cache(engine._assembler.split(prompt))


def prefill(engine: SamKVEngine, method: PrefillMethod, prompt: str) -> Prefill:
    """Run a method by itself, without the runtime."""
    parts = engine._assembler.split(prompt)
    layout = engine._assembler.with_cache(parts) if method.needs else engine._assembler.without_cache(parts)
    buffer = KVBuffer(engine.decoder.num_layers)
    with torch.inference_mode():
        prefilled = method.prefill(PrefillContext(engine.decoder, layout, buffer, engine._spec, Clock()))
        logits = engine.decoder.logits(prefilled.hidden)[0, -1]
    return Prefill(prefilled, prefilled.layout or layout, logits, buffer)


def chunks_apart(layout: PromptLayout) -> torch.Tensor:
    """Who sees whom, ``[tokens, tokens]``, where chunks see themselves alone and text sees everything before it."""
    position = torch.arange(layout.num_tokens)
    causal = position[None, :] <= position[:, None]
    same_chunk = layout.chunk_number[:, None] == layout.chunk_number[None, :]
    return causal & (~layout.is_chunk[:, None] | same_chunk)


def attention_of_tail(layout: PromptLayout, family: str = "llama") -> torch.Tensor:
    """Attention ``[layers, heads, tail, tokens]`` that the prompt's tail pays, where chunks see themselves alone;
    from transformers' own forward pass."""
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    mask = tiny.masks(model, chunks_apart(layout))
    with torch.inference_mode():
        found = model(layout.token_ids[None], attention_mask=mask, output_attentions=True).attentions
    return torch.stack(found)[:, 0, :, layout.tail]
