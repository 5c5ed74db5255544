"""Imports point one way and are fast, and every public name exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import samkv_rag

PACKAGE = Path(samkv_rag.__file__).parent
LAYERS = [
    {"exceptions", "chunk_cache", "forking", "sources"},
    {"checks", "grammar", "results"},
    {"config", "diagnostics", "explanation", "model", "store"},
    {"handover", "ingestion"},
    {"generation_result", "prompt"},
    {"prefill"},
    {"runtime"},
    {"engine"},
    {"frameworks"},
]
STORE_LAYERS = [
    {"base", "quantization"},
    {"codec", "disk", "memory", "testing", "tiers", "unreachable"},
    {"catalog", "objects", "redis"},
    {"open"},
]
MODULES = sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "__init__.py"})


def imported(path: Path) -> set[str]:
    """Return every module that ``path`` imports, including late imports and imports for types."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def point_down(own: str, others: set[str], package: str, layers: list[set[str]]) -> None:
    """Check that ``own`` imports only modules of ``package`` in lower layers."""
    level = {name: level for level, names in enumerate(layers) for name in names}
    inside = {name.removeprefix(f"{package}.").split(".")[0] for name in others if name.startswith(f"{package}.")}
    assert all(level[other] < level[own] for other in inside - {own}), f"{own} imports {inside}"


def test_there_are_at_most_nine_layers() -> None:
    assert len(LAYERS) <= 9
    assert set().union(*LAYERS) == {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own, *inner = path.relative_to(PACKAGE).with_suffix("").parts
    names = imported(path)
    point_down(own, names, "samkv_rag", LAYERS)
    outside = {name.split(".")[0] for name in names}
    assert not outside & {"llama_index", "langchain", "langchain_core", "samkv_apps"}
    assert "transformers" not in outside or own in {"model", "runtime"}
    assert "jinja2" not in outside or path.name == "render.py"
    if own == "store" and inner != ["__init__"]:
        assert "samkv_rag.store" not in names, "from the package itself it would get what is imported by then"
        point_down(inner[0], names, "samkv_rag.store", STORE_LAYERS)


def test_importing_the_package_brings_no_torch() -> None:
    code = (
        "import sys, samkv_rag; "
        "assert not {'torch', 'transformers', 'numpy', 'safetensors', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    assert sorted(samkv_rag.__all__) == sorted(set(samkv_rag.__all__))
    for name in samkv_rag.__all__:
        assert getattr(samkv_rag, name) is not None
    assert set(samkv_rag.__all__) <= set(dir(samkv_rag))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        samkv_rag.nothing  # noqa: B018
