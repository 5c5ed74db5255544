"""Models with random weights whose tokenizer has one token a byte: nothing is fetched, lengths are exact.

Speed and memory depend on shapes alone.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16384,
    },
}
_WORDS = ["harbour", "lantern", "granite", "keeper", "tide", "paraffin", "slipway", "beacon", "weather", "signal"]


@cache
def random_model(shape: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A model of ``SHAPES[shape]``, equal for equal arguments, its weights drawn on ``device``."""
    torch.manual_seed(0)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device(device):
        model = build(AutoConfig.for_model(**SHAPES[shape]), dtype=dtype)
    if shape == "tiny":
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # as initialised it is so flat that attention hardly matters
                    parameter.mul_(4.0)
    return model.eval()


@cache
def byte_tokenizer() -> Any:
    """One token a byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=bytes_only, bos_token="<s>", eos_token="</s>")


def chunk_text(number: int, num_tokens: int = 100) -> str:
    """A chunk's text of so many tokens, equal for equal arguments."""
    words = random.Random(number).choices(_WORDS, k=num_tokens // 5)
    return f"Record {number}: {' '.join(words)}"[:num_tokens].strip().ljust(num_tokens, ".")


def prompt(texts: list[str]) -> str:
    """A prompt as frameworks build it."""
    return "Use these passages.\n\n" + "\n\n".join(texts) + "\n\nQuestion: Who keeps the light?\nAnswer:"
