"""Models by name: options as in transformers, errors of our own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from samkv_rag import SamKVEngine
from samkv_rag.exceptions import ConfigurationError, ModelError, ModelNotFoundError, UnsupportedModelError
from samkv_rag.model.loading import LoadingOptions, choose_device, load
from support import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a saved model."""
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def opened(folder: Path, **options: Any) -> SamKVEngine:
    return SamKVEngine.from_pretrained(folder, **({"device": "cpu", "dtype": "float32"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"revison": "main"}, r"unknown option revison; did you mean revision\?"),
        ({"max_runing": 2}, r"did you mean max_running\?"),
        ({"trust_remote_code": True}, "unknown option trust_remote_code"),
        ({"model_kwargs": {"quantisation_config": {}}}, r"did you mean quantization_config\?"),
        ({"model_kwargs": {"trust_remote_code": True}}, "nothing in a model folder is executed"),
        (
            {"model_kwargs": {"torch_dtype": "float16"}},
            "model_kwargs has torch_dtype; dtype and the like are options beside it",
        ),
        ({"attn_implementation": "kernels/attention"}, "attn_implementation is 'kernels/attention'; it must be one of"),
        (
            {"device": None, "device_map": {"a": "cpu", "b": 0}},
            r"device_map is .* not one device, .* give device='cuda:0'",
        ),
        ({"device_map": "auto"}, "device is 'cpu' and device_map is 'auto'; give one"),
        ({"device": "meta"}, "device is 'meta': .* give 'cpu', or 'cuda'"),
        ({"device": "abacus"}, "device is 'abacus': .* give 'cpu'"),
        ({"device": None, "device_map": [0]}, r"device_map is \[0\]: .* give 'cpu'"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_with_the_remedy(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        opened(folder, **options)


@pytest.mark.parametrize("device", ["mps", "cuda:63", "xpu"])
def test_a_missing_device_is_our_error(folder: Path, device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigurationError, match=f"device_map is '{device}': .* where there is one"):
        opened(folder, device=None, device_map=device)


def test_auto_is_one_device_unless_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    default = choose_device(None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert [choose_device(None, place) for place in ("auto", {"": "cpu"})] == [default, torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigurationError, match="device_map is 'auto', which is not one device"):
        choose_device(None, "auto")


def test_options_of_the_hub_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def unreachable(source: str, **options: Any) -> None:
        asked.update(options)
        raise OSError("no hub")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    options: LoadingOptions = {"revision": "v2", "token": "secret", "model_kwargs": {"cache_dir": "models"}}
    with pytest.raises(ModelNotFoundError, match="loaded from 'a/model': no hub; give a hub id"):
        load("a/model", options)
    assert asked.items() >= {"revision": "v2", "token": "secret", "cache_dir": "models"}.items()
    assert asked["trust_remote_code"] is False


def test_fields_of_the_configuration_and_attention_are_passed_on(folder: Path) -> None:
    engine = opened(folder, model_kwargs={"max_position_embeddings": 1024}, attn_implementation="eager")
    assert engine.context_window == 1024


def test_nothing_in_a_model_folder_is_executed(folder: Path) -> None:
    (folder / "own.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    with pytest.raises(
        UnsupportedModelError, match="brings code of its own, and nothing in a model folder is executed"
    ):
        opened(folder)
    assert not (folder / "executed").exists()


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_model_without_all_of_its_weights_is_refused(folder: Path) -> None:
    """Transformers would fill them in at random."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights, model.layers.2.mlp.up_proj.weight among them"):
        opened(folder)


@pytest.mark.parametrize("quant_method", ["awq", "gptq", "hqq", "aqlm", None])
def test_what_needs_a_missing_package_is_refused_with_its_name(folder: Path, quant_method: str | None) -> None:
    if quant_method:
        edit_config(folder, quantization_config={"quant_method": quant_method, "bits": 4, "group_size": 32})
    attention = None if quant_method else "flash_attention_2"
    with pytest.raises(ModelError, match=r"on cpu: .*; install what is missing, or give another device"):
        opened(folder, attn_implementation=attention)


def test_spoilt_weights_are_our_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="could not be loaded on cpu"):
        opened(folder)


def test_a_model_on_several_devices_is_refused() -> None:
    model = tiny.model()
    model.model.layers[1].to("meta")
    with pytest.raises(UnsupportedModelError, match=r"its weights are on cpu, meta; .* one device"):
        SamKVEngine.from_pretrained(model, tokenizer=tiny.tokenizer())


def test_gguf_is_unpacked_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    with caplog.at_level(logging.WARNING, "samkv_rag"):
        engine = opened(tmp_path / "tiny.gguf")
    size_gb = tiny.model().num_parameters() * 4 / 1e9
    assert f"are unpacked, to {size_gb:.3g} GB in torch.float32" in caplog.text
    packed, plain = engine.decoder.model, tiny.model()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        difference = (packed(ids).logits - plain(ids).logits).norm() / plain(ids).logits.norm()
    assert 0 < difference < 0.05


def write_gguf(path: Path) -> None:
    """The tiny Llama in Q8_0."""
    model, config = tiny.model(), tiny.config("llama")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tiny.tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    merges = json.loads(tiny.tokenizer().backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        if "q_proj" in name or "k_proj" in name:  # GGUF pairs neighbouring dimensions
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(data.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if data.ndim > 1 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(data, kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
