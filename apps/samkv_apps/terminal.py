"""Functions that the commands share: quiet libraries, private files, models by name."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from samkv_rag.exceptions import ConfigurationError, ModelNotFoundError, StoreFormatError

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine
    from samkv_rag.store import Store

SECRET = "SAMKV_STORE_SECRET"
"""Environment variable with a store's secret. A command-line option would be visible in the process list."""
_HUB_HINT = "; without access to the hub, --model demo takes a small model from the package index"


def quieten_libraries(bars: bool = True) -> None:
    """Silence other libraries. Their progress bars stay if ``bars`` is true and stderr is a terminal."""
    if no_bars := not (bars and sys.stderr.isatty()):
        os.environ["TQDM_DISABLE"] = "1"  # before the next line imports tqdm, which reads it then
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if no_bars:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("samkv_rag").setLevel(logging.WARNING)  # LlamaIndex's readers turn every logger on


def language_model_path(name: str, say: Callable[[str], None]) -> str:
    """Return the packaged model's folder for ``demo`` and ``demo-small``, any other name unchanged."""
    from samkv_apps.models import PACKAGED, language_model

    return str(language_model(say, name)) if name in PACKAGED else name


def store_secret() -> str | None:
    """Return the store's secret from the environment.

    Raises:
        ConfigurationError: the secret is empty.
    """
    secret = os.environ.get(SECRET)
    if secret == "":
        raise ConfigurationError(f"{SECRET} is empty; give it some random text, or unset it for no secret")
    return secret


def open_engine(model: str, store: str | Path | Store, **options: Any) -> SamKVEngine:
    """Open an engine; ``model`` may also be the name of a packaged model.

    Raises:
        ModelNotFoundError: there is no such model. The message also tells what to do without a hub.
        SamKVError: see :meth:`SamKVEngine.from_pretrained`.
    """
    from samkv_rag import SamKVEngine

    try:
        path = language_model_path(model, lambda message: typer.echo(message, err=True))
        return SamKVEngine.from_pretrained(path, store=store, **options)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}{_HUB_HINT}") from error


def open_chroma(folder: Path) -> Any:
    """Open a Chroma client on a folder.

    Raises:
        StoreFormatError: the folder contains something else.
    """
    import chromadb
    from chromadb.config import Settings
    from chromadb.errors import ChromaError

    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # Chroma's files can be read by everyone, and hold the documents' texts
        return chromadb.PersistentClient(path=str(folder), settings=Settings(anonymized_telemetry=False))
    except (ChromaError, FileExistsError) as error:
        raise StoreFormatError(f"{folder} cannot hold a Chroma database ({error}); give another --store") from error


def write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only. A symbolic link at ``path`` is replaced.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    from samkv_rag.store.disk import written_whole  # late, because it imports torch

    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}; give a file in a folder that exists"
        ) from error


def require_packages(packages: dict[str, str], command: str, extra: str) -> None:
    """Check that packages, a map of module to name on the index, are installed; import none of them.

    Raises:
        ConfigurationError: packages are missing.
    """
    from importlib.util import find_spec

    def is_missing(module: str) -> bool:
        try:
            return find_spec(module) is None
        except ModuleNotFoundError:  # its parent package is missing
            return True

    if missing := [package for module, package in packages.items() if is_missing(module)]:
        raise ConfigurationError(f"{command} needs {', '.join(missing)}; pip install 'samkv-apps[{extra}]'")
