"""The command line: what it prints, where, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import pdfs
import samkv_rag
import tiny
from commands import Run, only_line
from samkv_rag import cli, demo
from samkv_rag.exceptions import ConfigurationError
from samkv_rag.store.management.inventory import open_existing, statistics

# -- outside ---------------------------------------------------------------------------------------


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"samkv {samkv_rag.__version__}\n", "")


def test_help_names_the_commands(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert "demo" in out
    assert "ingest" in out


def test_no_command_shows_help_and_is_wrong_usage(run: Run) -> None:
    status, out, _ = run()
    assert status == 2
    assert "ingest" in out


def test_importing_it_brings_no_torch_and_no_framework() -> None:
    code = (
        "import sys; import samkv_rag.cli; "
        "assert not {'torch', 'transformers', 'llama_index', 'chromadb', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_as_a_process_it_fails_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "samkv_rag.cli", "ingest", "missing.md", "--store", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "missing.md" in only_line(finished.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["ingest"],
        ["ingest", "a.md"],
        ["ingest", "--store", "s"],
        ["demo", "--questions", "0"],
        ["demo", "--questions", "two"],
        ["demo", "--sequence-ratio", "much"],
        ["demo", "--nonsense"],
        ["demo", "--framework", "another"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_one_line(run: Run, arguments: list[str]) -> None:
    status, out, error = run(*arguments)
    assert (status, out) == (2, "")
    assert "--help" in only_line(error)


# -- demo, as far as it goes without a model -------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sequence-ratio", "0"], "sequence_ratio is 0.0"),
        (["--questions", "99"], "the demo has"),
        (["--json", "/no/such/folder/figures.json"], "a folder that exists"),
        (["--json", "/"], "must be a file"),
    ],
)
def test_demo_refuses_bad_options_before_it_does_anything(run: Run, arguments: list[str], words: str) -> None:
    status, out, error = run("demo", *arguments)
    assert (status, out) == (1, "")
    assert words in only_line(error)


def test_demo_names_what_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGES", ("json", "no_such_package", "no_such.module"))
    status, _, error = run("demo")
    assert status == 1
    assert 'needs no_such_package, no_such.module; pip install "samkv-rag[demo]"' in only_line(error)


def test_demo_needs_the_packages_of_its_framework_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_is_installed", lambda name: not name.startswith("langchain"))
    demo.require_packages(demo.Framework.LLAMA_INDEX)
    with pytest.raises(ConfigurationError, match="needs langchain_chroma, langchain_core, langchain_samkv;"):
        demo.require_packages(demo.Framework.LANGCHAIN)


# -- ingest ----------------------------------------------------------------------------------------


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.md").write_text(f"# Note {seed}\n\n{tiny.text(seed)}\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\x00")
    return folder


def test_ingest_adds_then_reuses(run: Run, notes: Path, model_folder: Path, tmp_path: Path) -> None:
    arguments = ["ingest", notes, "--store", tmp_path / "store", "--model", model_folder]
    status, out, error = run(*arguments)
    assert (status, error) == (0, "")
    assert "3 files: 3 chunks added, 0 reused" in out
    status, out, error = run(*arguments, "--json")
    assert (status, error) == (0, "")
    figures = json.loads(out)
    assert (figures["files"], figures["added"], figures["reused"], figures["tokens"]) == (3, 0, 3, 0)


def test_ingest_keeps_tenants_and_secrets_apart(
    run: Run, notes: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["ingest", notes, "--store", tmp_path / "store", "--model", model_folder]
    added = []
    for secret, namespace in ((None, "a"), (None, "a"), (None, "b"), ("swordfish", "a"), ("swordfish", "a")):
        if secret is not None:
            monkeypatch.setenv("SAMKV_STORE_SECRET", secret)
        added.append(json.loads(run(*arguments, "--namespace", namespace, "--json")[1])["added"])
    assert added == [3, 0, 3, 3, 0]
    with open_existing(tmp_path / "store") as store:
        namespaces = {origin.namespace: amount.num_chunks for origin, amount in statistics(store).by_origin.items()}
    assert namespaces == {"a": 6, "b": 3}
    assert not any(b"swordfish" in file.read_bytes() for file in (tmp_path / "store").rglob("*") if file.is_file())


def test_ingest_refuses_an_empty_secret(run: Run, notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMKV_STORE_SECRET", "")
    status, _, error = run("ingest", notes, "--store", tmp_path / "store")
    assert status == 1
    assert "SAMKV_STORE_SECRET is empty" in only_line(error)


def test_ingest_takes_a_url(run: Run, notes: Path, model_folder: Path, tmp_path: Path) -> None:
    for url, added in ((f"memory://{tmp_path.name}/kv", 3), (f"memory://{tmp_path.name}/kv", 0)):
        status, out, error = run("ingest", notes, "--store", url, "--model", model_folder)
        assert (status, error) == (0, "")
        assert f"{added} chunks added" in out
    assert not list(Path.cwd().glob("memory:*"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.md", b" \n", "is empty"),
        ("binary.md", b"text\x00text", "binary"),
        ("latin.txt", "café".encode("latin-1"), "not UTF-8"),
        ("scanned.pdf", pdfs.pdf([""]), "holds no text"),
    ],
)
def test_ingest_refuses_what_is_not_text(run: Run, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    status, out, error = run("ingest", tmp_path / name, "--store", tmp_path / "store")
    assert (status, out) == (1, "")
    assert name in only_line(error)
    assert words in error
    assert not (tmp_path / "store").exists()


def test_ingest_takes_pdf_and_leaves_out_what_it_cannot_read(
    run: Run, notes: Path, model_folder: Path, tmp_path: Path
) -> None:
    (notes / "report.pdf").write_bytes(pdfs.pdf([tiny.text(7), tiny.text(8)]))
    (notes / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    status, out, error = run("ingest", notes, "--store", tmp_path / "store", "--model", model_folder)
    assert status == 0
    assert "4 files: 5 chunks added" in out
    (line,) = error.splitlines()
    assert line.startswith("samkv: warning: ") and "broken.pdf is damaged" in line


def test_ingest_refuses_a_folder_without_text(run: Run, tmp_path: Path) -> None:
    status, _, error = run("ingest", tmp_path, "--store", tmp_path / "store")
    assert status == 1
    assert "no files to read" in only_line(error)


def test_ingest_names_a_model_that_is_not_there(run: Run, notes: Path, tmp_path: Path) -> None:
    status, _, error = run("ingest", notes, "--store", tmp_path / "store", "--model", tmp_path / "no-model")
    assert status == 1
    assert "no-model" in only_line(error)


def test_ingest_refuses_a_store_that_is_a_file(run: Run, notes: Path, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("something else")
    status, _, error = run("ingest", notes, "--store", tmp_path / "store", "--model", model_folder)
    assert status == 1
    assert "cannot hold a store" in only_line(error)


def test_a_warning_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: warnings.showwarning("a\nfile", UserWarning, "x.py", 1))
    assert run() == (0, "", "samkv: warning: a file\n")
