"""Packed weights: the same results, the same fingerprint, and only where they are ours to pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from samkv_rag import SamKVEngine
from samkv_rag.model import packing
from samkv_rag.model.packing import PackedLinear, pack_linears
from support import tiny

CHUNKS = [tiny.text(seed) for seed in range(3)]
PROMPT = tiny.rag_prompt(CHUNKS)

pytestmark = pytest.mark.skipif(not packing.can_pack(), reason="this processor does not compute in bfloat16")


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_one(bias: bool) -> None:
    plain = nn.Linear(48, 70, bias=bias, dtype=torch.bfloat16)
    packed = PackedLinear(plain)
    with torch.inference_mode():
        for shape in ((0, 48), (1, 48), (1, 9, 48), (2, 130, 48)):
            rows = torch.randn(shape, dtype=torch.bfloat16)
            torch.testing.assert_close(packed(rows), plain(rows), rtol=0.02, atol=0.002)
        rows = torch.randn(3, 40, 48, dtype=torch.bfloat16)[:, ::7]
        torch.testing.assert_close(packed(rows), plain(rows), rtol=0.02, atol=0.002)
    assert torch.equal(packed.weight, plain.weight)
    assert {name: tensor.tolist() for name, tensor in packed.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in plain.state_dict().items()
    }


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gemma3"])
def test_a_model_loaded_by_its_name_is_packed_and_answers_alike(family: str, tmp_path: Path) -> None:
    model = tiny.model(family).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with (
        SamKVEngine.from_pretrained(tmp_path, dtype="bfloat16", method=tiny.method()) as packed,
        SamKVEngine.from_pretrained(model, tokenizer=tiny.tokenizer(), method=tiny.method()) as plain,
    ):
        assert any(isinstance(module, PackedLinear) for module in packed.decoder.model.modules())
        assert not any(isinstance(module, PackedLinear) for module in plain.decoder.model.modules())
        results: list[float | None] = []
        for engine in (packed, plain):
            engine.add_chunks(CHUNKS)
            results.append(engine.generate_scored(PROMPT, tiny.text(9), max_new_tokens=2).reference_nll)
        assert results[0] == pytest.approx(results[1], rel=0.01)
        again = SamKVEngine(packed.decoder.model, packed.tokenizer.tokenizer)
        assert again.fingerprint == packed.fingerprint
        again.close()


@pytest.mark.parametrize("tied", [True, False])
def test_plain_bfloat16_layers_are_packed_and_embeddings_stay(tied: bool) -> None:
    model = tiny.model("llama", tie_word_embeddings=tied)
    pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
    embeddings = model.to(torch.bfloat16).get_input_embeddings().weight.clone()
    outputs = model.get_output_embeddings().weight.clone()
    pack_linears(model)
    kinds = {type(module) for module in model.modules()}
    assert PackedLinear in kinds
    assert nn.Linear not in kinds
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    assert torch.equal(model.get_output_embeddings().weight, outputs)


def test_nothing_is_packed_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    model = tiny.model("llama").to(torch.bfloat16)
    pack_linears(model)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
