"""Imports point one way, cost nothing, and names are what they are said to be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import samkv_rag

PACKAGE = Path(samkv_rag.__file__).parent
LAYERS = [
    {"exceptions", "chunk_cache", "sources"},
    {"checks", "grammar", "results"},
    {"config", "diagnostics", "explanation", "model", "store"},
    {"handover", "ingestion"},
    {"generation_result", "prompt"},
    {"prefill"},
    {"runtime"},
    {"engine"},
    {"frameworks", "cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
STORE_LAYERS = [
    {"base", "quantization"},
    {"codec", "disk", "memory", "testing", "tiers", "unreachable"},
    {"catalog", "objects", "redis"},
    {"admin", "open"},
]
STORE_LEVEL = {name: level for level, names in enumerate(STORE_LAYERS) for name in names}
MODULES = sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "__init__.py"})
STORE_MODULES = sorted({*(PACKAGE / "store").rglob("*.py")} - {PACKAGE / "store" / "__init__.py"})


def imported(path: Path) -> set[str]:
    """Every module that ``path`` imports, late and for types alike."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def part(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def test_there_are_at_most_nine_layers() -> None:
    assert len(LAYERS) <= 9
    assert set(LEVEL) == {part(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    for name in imported(path):
        if name.startswith("samkv_rag."):
            other = name.split(".")[1]
            assert other == own or LEVEL[other] < LEVEL[own], f"{own} imports {other}"
        outside = name.split(".")[0]
        assert outside not in {"llama_index", "langchain", "langchain_core", "samkv_apps"}, f"{own} imports {name}"
        assert outside != "transformers" or own in {"model", "runtime"}, f"{own} imports {name}"
        assert outside != "jinja2" or path.name == "render.py", f"{own} imports {name}"


@pytest.mark.parametrize("path", STORE_MODULES, ids=lambda p: p.name)
def test_imports_point_one_way_in_the_store_too(path: Path) -> None:
    own = part(path, PACKAGE / "store")
    for name in imported(path):
        assert name != "samkv_rag.store", "from the package itself it would get what is imported by then"
        if name.startswith("samkv_rag.store."):
            other = name.split(".")[2]
            assert other == own or STORE_LEVEL[other] < STORE_LEVEL[own], f"{own} imports {other}"


def test_importing_the_package_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, time; started = time.perf_counter(); import samkv_rag; "
        "elapsed = time.perf_counter() - started; "
        "assert not {'torch', 'transformers', 'numpy', 'safetensors', 'jinja2'} & set(sys.modules); "
        "assert elapsed < 0.3, elapsed"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    assert sorted(samkv_rag.__all__) == sorted(set(samkv_rag.__all__))
    for name in samkv_rag.__all__:
        assert getattr(samkv_rag, name) is not None
    assert set(samkv_rag.__all__) <= set(dir(samkv_rag))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        samkv_rag.nothing  # noqa: B018
