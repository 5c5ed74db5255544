"""Which models are supported, what identifies them, how texts become tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from samkv_rag.exceptions import UnsupportedModelError
from samkv_rag.model import attention
from samkv_rag.model.attention import LayerSpec
from samkv_rag.model.decoder import Decoder
from samkv_rag.model.fingerprint import fingerprint
from samkv_rag.model.support import check_config, self_test
from samkv_rag.model.tokenization import PromptTokenizer
from support import tiny

REFUSED = {
    "qwen3.5": ("qwen3_5_text", {"head_dim": 16}, r"layers with linear_attention, .* generate\(\) .* \(full prefill\)"),
    "mamba": ("mamba", {}, "layers with linear_attention"),
    "falcon-h1": ("falcon_h1", {}, "layers with hybrid"),
    "deepseek": ("deepseek_v3", {"n_routed_experts": 4}, "its decoder is not made of .* layers of usual attention"),
    "no-rope": ("gpt2", {}, "it has no rotary positions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models_are_refused_with_the_reason(name: str) -> None:
    family, changes, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError, match=reason):
        check_config(tiny.model(family, **changes))


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_angles_that_depend_on_the_prompts_length_are_refused(rope_type: str) -> None:
    model = tiny.model()
    model.config.rope_parameters = {"rope_type": rope_type, "rope_theta": 1e4}
    with pytest.raises(UnsupportedModelError, match=f"rope_type is '{rope_type}', whose angles depend on"):
        check_config(model)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_supported_models_pass_the_self_test(family: str, dtype: torch.dtype) -> None:
    model = tiny.model(family, dtype)
    check_config(model)
    self_test(Decoder(model))


@pytest.mark.parametrize(
    ("family", "rotated", "neighbours"), [("llama", 4, 0), ("smollm3", 3, 0), ("cohere2", 3, 3), ("llama4", 3, 3)]
)
def test_which_layers_rotate_which_dimensions_is_seen(family: str, rotated: int, neighbours: int) -> None:
    ropes = [rope for rope in Decoder(tiny.model(family))._ropes if rope]
    assert (len(ropes), sum(rope.of_neighbours for rope in ropes)) == (rotated, neighbours)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda decoder: decoder._ropes.__setitem__(1, None), "keys of layer 1 rotated by 4072 "),
        (lambda decoder: setattr(decoder, "_embedding_scale", 3.0), "logits of a run layer by layer differ"),
    ],
)
def test_the_self_test_catches_what_is_wrong(spoil: Callable[[Decoder], None], what: str) -> None:
    decoder = Decoder(tiny.model())
    spoil(decoder)
    with pytest.raises(UnsupportedModelError, match=f"^llama: self-test failed, {what}"):
        self_test(decoder)


@pytest.mark.parametrize("family", tiny.WINDOWED)
def test_the_self_test_catches_windows_that_are_not_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also windows that are much longer than the probe."""
    decoder = Decoder(tiny.model(family, sliding_window=1024))
    monkeypatch.setattr(attention, "LayerSpec", lambda scaling, window, *rest: LayerSpec(scaling, None, *rest))
    with pytest.raises(UnsupportedModelError, match="logits of a run layer by layer differ"):
        self_test(decoder)
    monkeypatch.undo()
    self_test(decoder)
    assert set(decoder.windows) <= {1024, None}
    assert decoder.config.sliding_window == 1024


@pytest.mark.parametrize("error", [TypeError("no shared keys"), AssertionError("N must be divisible by block_n")])
def test_the_self_test_refuses_layers_that_do_not_run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Such as Gemma 4's, which read other layers' keys, and layers whose weights have no kernels here."""

    def forward(*states: Any, **rest: Any) -> None:
        raise error

    decoder = Decoder(tiny.model())
    monkeypatch.setattr(decoder._base.layers[2].mlp, "forward", forward)
    reason = rf"cannot be run one by one \({type(error).__name__}: {error}\) on cpu; .* format of weights"
    with pytest.raises(UnsupportedModelError, match=reason):
        self_test(decoder)


def test_llama4_is_used_as_far_as_all_its_layers_see_everything() -> None:
    """Beyond that, its attention is cut and its queries are scaled by their index in the pass."""
    assert Decoder(tiny.model("llama4", attention_chunk_size=512)).context_window == 512
    assert Decoder(tiny.model("llama4", floor_scale=512)).context_window == 511
    assert Decoder(tiny.model("llama4", floor_scale=512, attn_temperature_tuning=False)).context_window == 4096


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_the_model_itself_still_works_after_it_was_taken(family: str) -> None:
    ids = torch.arange(20)[None]
    untouched, taken = tiny.model(family), tiny.model(family)
    Decoder(taken)
    with torch.inference_mode():
        torch.testing.assert_close(taken(ids).logits, untouched(ids).logits)


# -- identity ------------------------------------------------------------------------------------


def test_a_fingerprint_is_the_models_and_the_tokenizers() -> None:
    own = fingerprint(tiny.model(), tiny.tokenizer())
    assert fingerprint(tiny.model(), tiny.tokenizer()) == own
    assert fingerprint(tiny.model(), tiny.space_prefixing_tokenizer()) != own


def edited(edit: Callable[[torch.Tensor], object]) -> Any:
    model = tiny.model()
    with torch.no_grad():
        edit(model.model.layers[2].mlp.up_proj.weight)
    return model


@pytest.mark.parametrize(
    "other",
    [
        lambda: edited(lambda weight: weight[3, 5].add_(0.25)),
        lambda: edited(lambda weight: weight[:2].copy_(weight[:2].flip(0))),
        lambda: tiny.model(dtype=torch.bfloat16),
        lambda: tiny.model("llama3-rope"),
        lambda: tiny.model(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        lambda: tiny.model("qwen2"),
        lambda: tiny.model(rms_norm_eps=1e-3),
        lambda: tiny.model("mistral-window"),
        lambda: tiny.model("gemma2"),
    ],
)
def test_whatever_changes_keys_changes_the_fingerprint(other: Any) -> None:
    assert fingerprint(other(), tiny.tokenizer()) != fingerprint(tiny.model(), tiny.tokenizer())


def test_the_number_of_experts_changes_the_fingerprint() -> None:
    two, one = tiny.model("gpt-oss"), tiny.model("gpt-oss", num_experts_per_tok=1)
    assert all(map(torch.equal, two.state_dict().values(), one.state_dict().values()))
    assert fingerprint(one, tiny.tokenizer()) != fingerprint(two, tiny.tokenizer())


# -- tokens --------------------------------------------------------------------------------------


def test_segments_joined_are_the_prompt_without_added_spaces() -> None:
    raw = tiny.space_prefixing_tokenizer()
    tokenizer = PromptTokenizer(raw)
    parts = ["Use these.\n\n", tiny.text(1), "\n\n", tiny.text(2), "\n\nQuestion: who?"]
    ids = tokenizer.text_ids(parts[0], starts_prompt=True)
    ids += tokenizer.chunk_ids(parts[1]) + tokenizer.text_ids(parts[2], False)
    ids += tokenizer.chunk_ids(parts[3]) + tokenizer.text_ids(parts[4], False)
    assert ids == raw("".join(parts))["input_ids"]


def test_a_bos_is_added_once_where_the_model_expects_one() -> None:
    tokenizer = PromptTokenizer(tiny.space_prefixing_tokenizer())
    assert tokenizer.bos_ids == [1]
    counts = {("keeper", True): 1, ("<s>keeper", True): 1, ("keeper", False): 0}
    assert {asked: tokenizer.text_ids(*asked).count(1) for asked in counts} == counts
    assert PromptTokenizer(tiny.tokenizer()).bos_ids == []


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_projecting_gives_what_the_whole_layer_hands_to_attention(family: str) -> None:
    decoder = Decoder(tiny.model(family))
    hidden, position_ids, seen = torch.randn(1, 7, decoder.config.hidden_size), torch.arange(3, 10), []

    def record(
        layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, spec: LayerSpec
    ) -> torch.Tensor:
        seen.append((key, value))
        return torch.zeros_like(query)

    with torch.inference_mode():
        decoder.run_layers(hidden, position_ids, record, [2])
        projected = decoder.project(hidden, position_ids, 2)
    for found, expected in zip(projected, seen[0], strict=True):
        assert torch.equal(found, expected)
