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
    {"exceptions"},
    {"documents"},
    {"config", "metrics", "prompt"},
    {"chunk_cache", "diagnostics"},
    {"store", "model"},
    {"ingestion", "sparse", "decoding"},
    {"methods"},
    {"assembly", "explanation"},
    {"generation"},
    {"engine"},
    {"serving"},
    {"evaluation"},
    {"cli_store", "demo"},
    {"ask"},
    {"cli_ask", "cli_evaluate"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
STORE_LAYERS = [
    {"format", "namespaces", "units"},
    {"base"},
    {"shared"},
    {"disk", "memory", "redis", "remote"},
    {"tiers"},
    {"management", "opening"},
]
STORE_LEVEL = {name: level for level, names in enumerate(STORE_LAYERS) for name in names}
FRAMEWORKS = {"llama_index", "langchain", "langchain_core", "chromadb"}
MODULES = sorted(PACKAGE.rglob("*.py"))
STORE_MODULES = sorted({*(PACKAGE / "store").rglob("*.py")} - {PACKAGE / "store" / "__init__.py"})


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def may_import_transformers(own: str, path: Path) -> bool:
    """Who may touch transformers. The rivals' embedding model is one of its own, with no part in the engine."""
    return own in ("model", "decoding", "demo") or path.relative_to(PACKAGE).as_posix() == "evaluation/embedding.py"


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize(
    "path", [m for m in MODULES if part(m) != "__init__"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_downwards(path: Path) -> None:
    own = part(path)
    for name in imported(path):
        if name.startswith("samkv_rag."):
            other = name.split(".")[1]
            assert LEVEL[other] < LEVEL[own] or other == own, f"{own} imports {other}"
        assert own == "demo" or name.split(".")[0] not in FRAMEWORKS, f"{own} imports {name}"
        assert may_import_transformers(own, path) or not name.startswith("transformers"), f"{own} imports {name}"


@pytest.mark.parametrize("path", STORE_MODULES, ids=lambda p: str(p.relative_to(PACKAGE / "store")))
def test_imports_point_downwards_in_the_store_too(path: Path) -> None:
    own = path.relative_to(PACKAGE / "store").parts[0].removesuffix(".py")
    for name in imported(path):
        if name.startswith("samkv_rag.store"):
            assert name != "samkv_rag.store", "from the package itself it would get what is imported by then"
            other = name.split(".")[2]
            assert STORE_LEVEL[other] < STORE_LEVEL[own] or other == own, f"{own} imports {other}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 300


def test_importing_the_package_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, time; started = time.perf_counter(); import samkv_rag; "
        "elapsed = time.perf_counter() - started; "
        "assert not {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules), sorted(sys.modules); "
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
