"""Exactness on a real model."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
import torch

from samkv_apps.demo.corpus import sections
from samkv_apps.models import language_model
from samkv_rag import SamKVEngine

pytestmark = pytest.mark.slow
CHUNKS = [section.text for section in sections()[:8]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SamKVEngine:
    torch.set_num_threads(2)
    engine = SamKVEngine.from_pretrained(
        language_model(say=print), store=tmp_path_factory.mktemp("store"), dtype="float32"
    )
    engine.add_chunks(CHUNKS)
    return engine


def messages() -> list[dict[str, str]]:
    passages = "\n\n".join(CHUNKS)
    content = f"Answer from the passages.\n\n{passages}\n\nQuestion: In which year was the tower begun?"
    return [{"role": "user", "content": content}]


def test_keep_all_recompute_all_equals_full_prefill(engine: SamKVEngine) -> None:
    from benchmarks.engine import measure_exactness

    differences = measure_exactness(str(language_model(say=print)), CHUNKS)
    assert max(differences.values()) < 1e-4, differences


def test_the_same_text_as_transformers_own_generate(engine: SamKVEngine) -> None:
    """Greedy full prefill, ours against theirs, on the ids of the whole prompt."""
    found = engine.generate(messages(), method="full_prefill", max_new_tokens=16)
    layout = engine._assembler.without_cache(engine._assembler.split(engine.apply_chat_template(messages())))
    expected: Any = engine.decoder.model.generate(
        layout.token_ids[None], max_new_tokens=16, do_sample=False, pad_token_id=0
    )
    assert list(found.token_ids) == [i for i in expected[0, layout.num_tokens :].tolist() if i not in engine._end_ids]


def test_segments_tokenise_as_the_whole_prompt_does_but_for_their_edges(engine: SamKVEngine) -> None:
    """A tokenizer may merge the line breaks before a chunk with its first character; nothing else differs."""
    text = engine.apply_chat_template(messages())
    found = engine._assembler.without_cache(engine._assembler.split(text)).token_ids.tolist()
    whole = engine.tokenizer.tokenizer(text.text, add_special_tokens=False)["input_ids"]
    assert engine.tokenizer.tokenizer.decode(found) == engine.tokenizer.tokenizer.decode(whole) == text.text
    same = sum(
        block.size for block in difflib.SequenceMatcher(None, found, whole, autojunk=False).get_matching_blocks()
    )
    assert max(len(found), len(whole)) - same <= 2 * 2 * len(CHUNKS), "two tokens at each edge"
