"""Tiny random models of every supported family, a tokenizer and texts; nothing is downloaded."""

from __future__ import annotations

import random
from copy import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from samkv_rag.model.attention import additive
from samkv_rag.prefill import PrefillMethod, method_classes
from samkv_rag.prefill.base import CachedPrefill

WORDS = [
    "harbour", "lantern", "gannet", "granite", "keeper", "tide", "engine", "paraffin", "slipway", "beacon",
    "weather", "record", "station", "island", "north", "stone", "seven", "winter", "letter", "signal",
]  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|system|>\n<tools>\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    '{{ \'</tools>\nCall one with <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call></s>\n\' }}{% endif %}'
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}"
    "{% endfor %}{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DOCUMENT_TEMPLATE = (
    "{% if documents %}<|system|>\n{% for document in documents %}{{ loop.index }} {{ document['title'] }}\n"
    "{{ document['text'] }}\n\n{% endfor %}Cite them.</s>\n{% endif %}" + CHAT_TEMPLATE
)
VOCAB_SIZE = 512
CONTEXT_WINDOW = 4096
_EVERY_THIRD_FULL = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
_PHI3 = {"model_type": "phi3", "pad_token_id": 0, "sliding_window": None}


def _rope(rope_type: str = "default", **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **options}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama3-rope": {"model_type": "llama", **_rope("llama3", **_LLAMA3)},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 24},
    "qwen3-moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "phi3": _PHI3,
    "phi3-partial-rope": {**_PHI3, **_rope(partial_rotary_factor=0.5)},
    "olmo2": {"model_type": "olmo2"},
    "granite": {"model_type": "granite", "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "yarn": {"model_type": "llama", **_rope("yarn", factor=4.0, original_max_position_embeddings=1024)},
    # Windows, layer by layer, shorter than the tests' chunks and longer
    "mistral-window": {"model_type": "mistral", "sliding_window": 40},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
    "ministral": {
        "model_type": "ministral",
        "head_dim": 16,
        "sliding_window": 40,
        "layer_types": _EVERY_THIRD_FULL,
        **_rope(),
    },
    "olmo3": {"model_type": "olmo3", "sliding_window": 32, "layer_types": _EVERY_THIRD_FULL},
    "exaone4": {"model_type": "exaone4", "sliding_window": 24, "layer_types": _EVERY_THIRD_FULL},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 32,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 32, "layer_types": _EVERY_THIRD_FULL},
    "gpt-oss": {
        "model_type": "gpt_oss",
        "head_dim": 16,
        "sliding_window": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "cohere2": {"model_type": "cohere2", "sliding_window": 48, "layer_types": _EVERY_THIRD_FULL, "logit_scale": 0.5},
    "smollm3": {"model_type": "smollm3", "pad_token_id": 0, "no_rope_layers": [1, 0, 1, 1]},
    "llama4": {
        "model_type": "llama4_text",
        "head_dim": 16,
        "intermediate_size_mlp": 96,
        "no_rope_layers": [1, 0, 1, 1],
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
    },
}
WINDOWED = ["mistral-window", "qwen2-window", "ministral", "olmo3", "exaone4", "gemma2", "gemma3", "gpt-oss", "cohere2"]


def windows(model: Any, position: torch.Tensor) -> list[torch.Tensor]:
    """Which positions ``[tokens]`` see which through each layer's window, ``[tokens, tokens]``."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    width = getattr(config, "sliding_window", None) or CONTEXT_WINDOW
    back = position[:, None] - position
    return [back < (width if kind == "sliding_attention" else CONTEXT_WINDOW) for kind in kinds]


def masks(model: Any, seen: torch.Tensor) -> Any:
    """``seen`` ``[tokens, tokens]`` through the layers' windows, as a model's own forward takes it."""
    through = windows(model, torch.arange(len(seen)))
    masks = [additive(seen & window, torch.float32)[None, None] for window in through]
    return dict(zip(getattr(model.config, "layer_types", ()), masks, strict=False)) or masks[0]


def rotary(model: Any, layer: int, hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
    """The rotary embedding of a layer's own forward."""
    kind = () if "rope_type" in model.config.rope_parameters else (model.config.layer_types[layer],)
    return model.model.rotary_emb(hidden, position_ids, *kind)


def method(name: str = "scout", **options: Any) -> PrefillMethod:
    """A method that uses caches for prompts of any length."""
    cls = method_classes()[name]
    return cls(**(({"min_chunk_tokens": 0} if issubclass(cls, CachedPrefill) else {}) | options))


def method_id(method: PrefillMethod) -> str:
    """A method and its options other than the defaults, short enough to name a test."""
    default = type(method)().to_dict()
    return "-".join([method.name, *(f"{k}={v}" for k, v in method.to_dict().items() if default[k] != v)])


def text(seed: int, num_words: int = 60) -> str:
    """A chunk text, equal for equal seeds."""
    chooser = random.Random(seed)
    return f"Record {seed}: " + " ".join(chooser.choices(WORDS, k=num_words)) + "."


def rag_prompt(chunks: list[str], question: str = "What does the seventh keeper record of the tide?") -> str:
    """A prompt as frameworks build it."""
    return "Use these passages.\n\n" + "\n\n".join(chunks) + f"\n\nQuestion: {question}\nAnswer:"


@cache
def tokenizer() -> Any:
    """Byte-level BPE trained on the texts above."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text(seed) for seed in range(50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE)


def space_prefixing_tokenizer() -> Any:
    """Puts a space before every text and a BOS before every prompt, as Llama 2's and Mistral's do; a token is a
    character, or a byte of an unknown one."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    bpe = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Metaspace(prepend_scheme="always")
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tokenizer_with(chat_template: str | None) -> Any:
    """The same tokenizer, with another template."""
    other = copy(tokenizer())
    other.chat_template = chat_template
    return other


def config(family: str, **changes: Any) -> Any:
    """Configuration of a tiny model."""
    options: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_WINDOW,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    return AutoConfig.for_model(**(options | FAMILIES.get(family, {"model_type": family}) | changes))


def model(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny model with random weights, equal for equal arguments."""
    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config(family, **changes), dtype=dtype)
    with torch.no_grad():
        for parameter in built.parameters():
            # The default initialisation is so flat that attention hardly matters.
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return built.eval()
