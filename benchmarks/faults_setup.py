"""A small engine for the fault suite: random weights, one token a byte, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.synthetic import SHAPES
from samkv_rag import SamKVConfig, SamKVEngine
from samkv_rag.store import KVStore, MemoryStore
from samkv_rag.store.base import EncodedChunk

_WORDS = ["harbour", "lantern", "granite", "keeper", "tide", "paraffin", "slipway", "beacon", "weather", "signal"]
_REFERENCE = "the seventh keeper"


def chunk_text(number: int, num_words: int = 12) -> str:
    """A chunk's text, equal for equal numbers."""
    return f"Record {number}: " + " ".join(random.Random(number).choices(_WORDS, k=num_words)) + "."


def small_engine(store: KVStore) -> SamKVEngine:
    """An engine that uses caches however short the prompt."""
    config = SamKVConfig(min_chunk_tokens=0)
    return SamKVEngine.from_pretrained(_model(), tokenizer=_tokenizer(), store=store, config=config)


def encoded_chunks(texts: Sequence[str]) -> list[EncodedChunk]:
    """The texts' chunks, computed by the engine, as the bytes of their files."""
    store = MemoryStore()
    engine = small_engine(store)
    engine.add_chunks(texts, show_progress=False)
    entries, _ = store.changes(engine.fingerprint, 0) or ([], 0)
    found = [store.fetch(entry.key, engine.fingerprint) for entry in entries]
    return [chunk for chunk in found if chunk is not None]


Answer = tuple[Sequence[int], float]
"""Token ids and the mean negative log-likelihood of a reference."""


def ask(engine: SamKVEngine, texts: Sequence[str]) -> tuple[Answer, int, int]:
    """An answer over chunks of these texts, how many of them the store had, and how many not."""
    engine.hint(texts)  # as a retriever does: chunks are recognised whether the index knows them or not
    prompt = "Use these passages.\n\n" + "\n\n".join(texts) + "\n\nQuestion: Who keeps the light?\nAnswer:"
    result, nll = engine.generate_scored(prompt, _REFERENCE, max_new_tokens=8)
    return (result.token_ids, nll), result.metrics.chunks_hit, result.metrics.chunks_missed


def equal(one: Answer, other: Answer) -> bool:
    """The same tokens, and likelihoods that differ by rounding at most."""
    return one[0] == other[0] and abs(one[1] - other[1]) < 1e-4


@cache
def _model() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.for_model(**(SHAPES["tiny"] | {"vocab_size": 260})), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # the default initialisation is so flat that attention hardly matters
                parameter.mul_(4.0)
    return model.eval()


@cache
def _tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>")
