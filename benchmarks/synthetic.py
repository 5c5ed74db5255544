"""Models with random weights and prompts of random tokens: nothing is downloaded, lengths are exact.

Speed and memory depend on shapes alone, so chunks are given as token ids, below the text level.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from samkv_rag import SamKVConfig
from samkv_rag.chunk_cache import ChunkCache, ChunkReader, Layout, Means, chunk_key
from samkv_rag.ingestion.encoder import encode
from samkv_rag.model.decoder import Decoder
from samkv_rag.sparse.layout import PromptLayout, Segment
from samkv_rag.store import Entry, KVStore

FINGERPRINT = "random weights"
_BATCH_TOKENS = 8192

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rope_parameters": _LLAMA3_ROPE,
        "tie_word_embeddings": False,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        # The real window is 32768; memory is measured beyond it.
        "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
}


def random_decoder(
    shape: str, device: torch.device, dtype: torch.dtype = torch.bfloat16, num_layers: int | None = None
) -> Decoder:
    """A model of ``SHAPES[shape]``, its weights drawn on ``device``: no copy passes through host memory."""
    depth = {} if num_layers is None else {"num_hidden_layers": num_layers}
    config = AutoConfig.for_model(**(SHAPES[shape] | depth))
    torch.manual_seed(0)
    build: Any = AutoModelForCausalLM.from_config
    with device:
        return Decoder(build(config, dtype=dtype))


def random_ids(num_tokens: int, vocab_size: int, seed: int) -> torch.Tensor:
    """Token ids ``[num_tokens]``, equal for equal arguments."""
    return torch.randint(0, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class PromptParts:
    """What stands around the chunks, as token ids ``[tokens]``."""

    prefix: ChunkReader
    """The system prompt and template head, whose KV is cached exactly."""
    separator: torch.Tensor
    question: torch.Tensor

    def layout(self, chunks: Sequence[ChunkReader], device: torch.device) -> PromptLayout:
        """A prompt as frameworks build it: prefix, chunks with separators between them, question."""
        segments = [Segment("prefix", self.prefix.token_ids, 0, self.prefix)]
        for number, chunk in enumerate(chunks):
            if number:
                segments.append(Segment("text", self.separator, segments[-1].stop))
            segments.append(Segment("chunk", chunk.token_ids, segments[-1].stop, chunk, chunk_key=str(number)))
        segments.append(Segment("text", self.question, segments[-1].stop))
        return PromptLayout(segments, device)


def prompt_parts(decoder: Decoder, prefix_tokens: int, question_tokens: int) -> PromptParts:
    """Random tokens around the chunks, and one token between them."""
    vocab_size = int(decoder.config.vocab_size)
    prefix = random_ids(prefix_tokens, vocab_size, seed=1).tolist()
    cached = encode(decoder, [prefix], Layout(0, 1, prefix_tokens), FINGERPRINT)[0]
    return PromptParts(cached, random_ids(1, vocab_size, seed=2), random_ids(question_tokens, vocab_size, seed=3))


def encoded_chunks(decoder: Decoder, num_chunks: int, chunk_tokens: int) -> list[ChunkCache]:
    """Caches of chunks of random tokens, computed by the model, in host memory."""
    ids = random_ids(num_chunks * chunk_tokens, int(decoder.config.vocab_size), seed=0).view(num_chunks, chunk_tokens)
    batches = torch.split(ids, max(1, _BATCH_TOKENS // chunk_tokens))
    layout = chunk_layout(decoder)
    return [cache for batch in batches for cache in encode(decoder, batch.tolist(), layout, FINGERPRINT)]


def random_chunk(decoder: Decoder, num_tokens: int, seed: int) -> ChunkCache:
    """A cache of ``num_tokens`` with random contents, for where nothing but its bytes counts."""
    layout = chunk_layout(decoder)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=decoder.dtype, generator=generator)

    layers, kv_heads, head_dim = decoder.num_layers, decoder.num_kv_heads, decoder.head_dim
    keys, values = (draw(layers, kv_heads, num_tokens, head_dim) for _ in range(2))
    means = Means(draw(layers, kv_heads, 0, head_dim), draw(layers, kv_heads, head_dim), draw(layers, 1, head_dim))
    hidden = draw(num_tokens, decoder.hidden_size) if layout.resume_layer else None
    ids = random_ids(num_tokens, int(decoder.config.vocab_size), seed)
    return ChunkCache(ids, keys, values, means, layout, FINGERPRINT, hidden)


def chunk_layout(decoder: Decoder) -> Layout:
    """How the default configuration summarises chunks."""
    config = SamKVConfig()
    resume_layer = config.stored_resume_layer(decoder.num_layers)
    return Layout(config.initial_tokens, config.local_tokens, config.block_tokens, resume_layer)


def store_chunks(store: KVStore, caches: Iterable[ChunkCache]) -> list[str]:
    """Put ``caches`` into ``store`` and return their keys."""
    keys = []
    for number, cache in enumerate(caches):
        digest = chunk_digest(number)
        key = chunk_key(cache.fingerprint, digest)
        store.put(Entry(key, digest, digest, digest, len(digest), cache.num_tokens, cache.layout), cache)
        keys.append(key)
    return keys


def chunk_digest(number: int) -> str:
    """What stands for a text's digest, since there is no text."""
    return f"chunk {number}"


def open_chunk(store: KVStore, key: str) -> ChunkReader:
    """A reader of a chunk that :func:`store_chunks` has put there."""
    reader = store.open(key, FINGERPRINT)
    if reader is None:
        raise RuntimeError(f"chunk {key} was stored and cannot be read back; is the disk full?")
    return reader


def parse_token_counts(text: str) -> list[int]:
    """``"4k,8k,500"`` to ``[4096, 8192, 500]``.

    Raises:
        ValueError: a part is not a positive number of tokens.
    """
    counts = [_parse_token_count(part.strip().lower()) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError(f"{text!r} holds a count below 1; give lengths such as 4k,8k or 500")
    return counts


def refuse_long_chunks(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with an error where a chunk is longer than the shortest of ``--contexts``."""
    shortest = min(parse_token_counts(options.contexts))
    if not 1 <= options.chunk_tokens <= shortest:
        parser.error(f"--chunk-tokens is {options.chunk_tokens}; the shortest context has {shortest} tokens")


def _parse_token_count(part: str) -> int:
    return int(part[:-1]) * 1024 if part.endswith("k") else int(part)
