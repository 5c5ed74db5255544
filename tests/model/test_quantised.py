"""Quantised weights: loaded as they are, tested at load, with caches of their own.

Skipped without the formats' packages; ``make test`` installs them in a separate folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from samkv_rag import EngineConfig, SamKVEngine
from samkv_rag.exceptions import ModelError
from samkv_rag.model.loading import load
from support import tiny

CHUNKS = [tiny.text(seed) for seed in range(3)]
PROMPT = tiny.rag_prompt(CHUNKS)
Quantisation = Callable[[], Any]


def torchao(name: str, **options: Any) -> Quantisation:
    def make() -> Any:
        quantization = pytest.importorskip("torchao.quantization")
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(quantization, name)(**{key: value() for key, value in options.items()}))

    return make


def bitsandbytes(**options: Any) -> Quantisation:
    def make() -> Any:
        pytest.importorskip("bitsandbytes")
        return options  # as JSON has it

    return make


def int4() -> Any:
    return torch.int4  # type: ignore[attr-defined]


def groups_of_32() -> Any:
    return pytest.importorskip("torchao.quantization.granularity").PerGroup(32)


KEPT: dict[str, tuple[Quantisation, str]] = {
    "torchao-int8": (torchao("Int8WeightOnlyConfig"), "Int8Tensor"),
    "torchao-int8-int8": (torchao("Int8DynamicActivationInt8WeightConfig"), "Int8Tensor"),
    "torchao-int4": (
        torchao("IntxWeightOnlyConfig", weight_dtype=int4, granularity=groups_of_32),
        "IntxUnpackedToInt8Tensor",
    ),
    "bitsandbytes-int8": (bitsandbytes(load_in_8bit=True), "Int8Params"),
    "bitsandbytes-nf4": (bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "Params4bit"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model wide enough for every format's groups."""
    return saved(tiny.model(hidden_size=128, intermediate_size=256), tmp_path_factory.mktemp("plain"))


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path, **model_kwargs: Any) -> SamKVEngine:
    config = EngineConfig(kv_dtype="float32", block_tokens=8)
    return SamKVEngine.from_pretrained(
        folder, device="cpu", dtype="float32", model_kwargs=model_kwargs, config=config, method=tiny.method()
    )


def weight_of(engine: SamKVEngine) -> torch.Tensor:
    return engine.decoder._base.layers[1].self_attn.q_proj.weight


def generated(folder: Path, **options: Any) -> list[int]:
    """Return the answer of transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    ids = torch.tensor([tiny.tokenizer()(PROMPT)["input_ids"]])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
    return answer[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", KEPT)
def test_quantised_weights_stay_so_and_answer_as_in_transformers(plain: Path, tmp_path: Path, name: str) -> None:
    quantised, kind = KEPT[name]
    engine = opened(plain, quantization_config=quantised())
    engine.add_chunks(CHUNKS)
    expected = tiny.tokenizer().decode(generated(plain, quantization_config=quantised()), skip_special_tokens=True)
    for method in ("full_prefill", tiny.method("scout", sequence_ratio=1.0)):
        assert engine.generate(PROMPT, method=method, max_new_tokens=8).text == expected
    assert type(weight_of(engine)).__name__ == kind
    assert engine.decoder.dtype == torch.float32


@pytest.mark.parametrize("name", KEPT)
def test_a_quantised_checkpoint_is_loaded_as_it_is(plain: Path, tmp_path: Path, name: str) -> None:
    quantised, kind = KEPT[name]
    model, _ = load(plain, {"model_kwargs": {"quantization_config": quantised()}, "dtype": "float32", "device": "cpu"})
    engine = opened(saved(model, tmp_path))
    assert type(weight_of(engine)).__name__ == kind


def test_every_quantisation_has_caches_of_its_own(plain: Path) -> None:
    pytest.importorskip("torchao")
    names = [name for name in KEPT if name.startswith("torchao")]
    first, second = (
        [opened(plain).fingerprint, *(opened(plain, quantization_config=KEPT[name][0]()).fingerprint for name in names)]
        for _ in range(2)
    )
    assert first == second
    assert len(set(first)) == 1 + len(names)


def test_an_int4_that_needs_a_gpu_is_refused_without_one(plain: Path) -> None:
    with pytest.raises(ModelError, match=r"could not be loaded on cpu: .* give another device, dtype or model_kwargs"):
        opened(plain, quantization_config=torchao("Int4WeightOnlyConfig")())


def test_compressed_tensors_are_unpacked_with_a_warning(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("compressed_tensors")
    unpacked = compress(plain, tmp_path)
    with caplog.at_level(logging.WARNING, "samkv_rag"):
        engine = opened(tmp_path)
    size_gb = sum(tensor.numel() * 4 for tensor in unpacked.values()) / 1e9
    assert f"are unpacked, to {size_gb:.3g} GB in torch.float32" in caplog.text
    found = engine.decoder.model.state_dict()
    for name, tensor in unpacked.items():
        torch.testing.assert_close(found[name], tensor)
    assert engine.fingerprint != opened(plain).fingerprint


def compress(plain: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Write the model with int8 rows and their scales, and return what they stand for."""
    saved(tiny.model(hidden_size=128, intermediate_size=256), folder)
    stored, unpacked = load_file(plain / "model.safetensors"), load_file(plain / "model.safetensors")
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        scales = stored[name].abs().amax(1, keepdim=True) / 127
        stored[f"{name}_scale"] = scales
        stored[name] = (stored[name] / scales).round().to(torch.int8)
        unpacked[name] = stored[name] * scales
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"all": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return unpacked
