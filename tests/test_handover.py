"""Another engine decodes the same answer from a handover."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from samkv_rag import Grammar, SamKVEngine, SamKVError
from samkv_rag.prefill import SparsePrefill
from support import handovers, tiny
from support.engines import CHUNKS, PROMPT, MakeEngine

pytestmark = pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated")
NUM_TOKENS = 12


def logits_here(engine: SamKVEngine) -> tuple[list[int], torch.Tensor]:
    """An answer's tokens, and the logits ``[tokens, vocab]`` that they were chosen by."""
    seen = []

    def greedy(logits: torch.Tensor) -> int:
        seen.append(logits[0].float().clone())
        return int(logits.argmax())

    method = replace(engine.method, refresh_tokens=None) if isinstance(engine.method, SparsePrefill) else engine.method
    result = engine.generate(PROMPT, method=method, max_new_tokens=NUM_TOKENS, choose=greedy)
    return list(result.token_ids), torch.stack(seen)


@pytest.mark.parametrize("method", ["scout", "samkv", "full_prefill"])
@pytest.mark.parametrize("family", ["llama", "llama3-rope", "yarn", "mistral", "qwen2", "qwen3", "phi3", "smollm3"])
def test_decoding_elsewhere_equals_decoding_here(family: str, method: str, make_engine: MakeEngine) -> None:
    engine = make_engine(family, method=method, chunks=CHUNKS)
    token_ids, expected = logits_here(engine)
    result = engine.generate(PROMPT, handover=True)
    handover = result.handover
    assert handover is not None
    assert result.token_ids == handover.token_ids[-1:] == (token_ids[0],)
    assert (len(handover.token_ids) - 1 < result.metrics.prompt_tokens) == (method != "full_prefill")
    assert handover.keys.shape[1] == len(handover.token_ids) - 1
    # transformers decodes the dense prompt; the first token was handed over.
    found = handovers.logits(tiny.model(family), handovers.cache(handover.keys, handover.values), token_ids[:-1])
    assert len(found) == NUM_TOKENS - 1
    torch.testing.assert_close(found, expected[1:], atol=1e-4, rtol=1e-4)


def test_a_saved_handover_is_private_and_deleted_with_its_context(tiny_engine: SamKVEngine, tmp_path: Path) -> None:
    handover = tiny_engine.generate(PROMPT, handover=True).handover
    assert handover is not None
    with handover.saved(tmp_path) as path:
        assert path == tmp_path / f"{handover.key}.safetensors"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        stored = safetensors.torch.load_file(path)
        assert tuple(stored.pop("token_ids").tolist()) == handover.token_ids
        torch.testing.assert_close(stored, {"keys": handover.keys, "values": handover.values}, atol=0, rtol=0)
    assert not path.exists()
    again = tiny_engine.generate(PROMPT, handover=True).handover
    assert again is not None
    assert len({handover.key, again.key}) == 2


def test_there_is_no_handover_by_default_or_if_the_first_token_ends_the_answer(tiny_engine: SamKVEngine) -> None:
    first = tiny_engine.generate(PROMPT, max_new_tokens=1)
    assert first.handover is None
    assert tiny_engine.generate(PROMPT, handover=True, stop=first.text).handover is None


@pytest.mark.parametrize(
    "options",
    [
        {"n": 2},
        {"logprobs": True},
        {"repetition_penalty": 1.1},
        {"grammar": Grammar.choices(["a"])},
        {"choose": lambda logits: 0},
        {"method": tiny.method(refresh_tokens=8)},
    ],
    ids=str,
)
def test_options_of_our_own_are_refused(options: Any, tiny_engine: SamKVEngine) -> None:
    name = "refresh_tokens" if "method" in options else next(iter(options))
    with pytest.raises(SamKVError, match=f"cannot carry out {name};"):
        tiny_engine.generate(PROMPT, handover=True, **options)


@pytest.mark.parametrize("family", ["mistral-window", "gemma3"])
def test_windows_are_refused(family: str, make_engine: MakeEngine) -> None:
    with pytest.raises(SamKVError, match=r"see a window of \d+ tokens"):
        make_engine(family).generate(PROMPT, handover=True)
