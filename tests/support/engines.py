"""Helpers for engines of tiny models: chunks, prefills, and the slow path that they must equal."""

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
    """Make requests at once from an event loop, and return their results or errors."""

    async def ask() -> list[Any]:
        return await asyncio.gather(*(engine.agenerate(**(options | one)) for one in asked), return_exceptions=True)

    return asyncio.run(ask())


class Prefill(NamedTuple):
    """The result of a prefill."""

    prefilled: Prefilled
    layout: PromptLayout
    """The prompt, with its chunks placed by the method."""
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
    """The mask ``[tokens, tokens]`` in which chunks see only themselves and text sees everything before it."""
    position = torch.arange(layout.num_tokens)
    causal = position[None, :] <= position[:, None]
    same_chunk = layout.chunk_number[:, None] == layout.chunk_number[None, :]
    return causal & (~layout.is_chunk[:, None] | same_chunk)


def attention_of_tail(layout: PromptLayout, family: str = "llama") -> torch.Tensor:
    """Attention ``[layers, heads, tail, tokens]`` of the tail, computed by transformers; chunks see only themselves."""
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    mask = tiny.masks(model, chunks_apart(layout))
    with torch.inference_mode():
        found = model(layout.token_ids[None], attention_mask=mask, output_attentions=True).attentions
    return torch.stack(found)[:, 0, :, layout.tail]
