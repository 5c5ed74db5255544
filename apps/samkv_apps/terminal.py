"""What the commands share: quiet libraries, files written whole, models by name."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from samkv_rag.exceptions import ConfigurationError, ModelNotFoundError, StoreFormatError

if TYPE_CHECKING:
    from samkv_rag import SamKVEngine
    from samkv_rag.store import Store

SECRET = "SAMKV_STORE_SECRET"
"""Variable with the secret of a store; not an option, since those can be read in the list of processes."""
_HUB_HINT = "; where no hub can be reached, --model demo takes a small model from the package index"


def quieten_libraries(bars: bool = True) -> None:
    """Keep other libraries' notices off the terminal, and their progress bars out of files; or all their bars."""
    if no_bars := not (bars and sys.stderr.isatty()):
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported, which is next
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if no_bars:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("samkv_rag").setLevel(logging.WARNING)  # LlamaIndex's readers let every logger speak


def language_model_path(name: str, say: Callable[[str], None]) -> str:
    """A hub id, folder or .gguf file as it is; for ``demo`` and ``demo-small`` the packaged model's folder."""
    from samkv_apps.models import PACKAGED, language_model

    return str(language_model(say, name)) if name in PACKAGED else name


def embedding_model_path(name: str) -> str:
    """A hub id or folder as it is; the packaged model's folder for ``demo``."""
    from samkv_apps.models import embedding_model

    return str(embedding_model()) if name == "demo" else name


def store_secret() -> str | None:
    """The secret of the store.

    Raises:
        ConfigurationError: it is empty.
    """
    secret = os.environ.get(SECRET)
    if secret == "":
        raise ConfigurationError(f"{SECRET} is empty; give it some random text, or unset it for no secret")
    return secret


def open_engine(model: str, store: str | Path | Store, **options: Any) -> SamKVEngine:
    """Load a model, which ``demo`` may name, over a store.

    Raises:
        ModelNotFoundError: there is none; the message also says what to do where no hub can be reached.
        SamKVError: as of :meth:`SamKVEngine.from_pretrained`.
    """
    from samkv_rag import SamKVEngine

    try:
        path = language_model_path(model, lambda message: typer.echo(message, err=True))
        return SamKVEngine.from_pretrained(path, store=store, **options)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}{_HUB_HINT}") from error


def open_chroma(folder: Path) -> Any:
    """A Chroma client on a folder.

    Raises:
        StoreFormatError: the folder holds something else.
    """
    import chromadb
    from chromadb.config import Settings
    from chromadb.errors import ChromaError

    try:
        return chromadb.PersistentClient(path=str(folder), settings=Settings(anonymized_telemetry=False))
    except ChromaError as error:
        raise StoreFormatError(f"{folder} cannot hold a Chroma database ({error}); give another --store") from error


def write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, readable by its owner alone; a link in its place is replaced.

    Raises:
        ConfigurationError: it cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:  # 0600
            file.write(text)
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be written: {error.strerror}; give a file in a folder that exists"
        ) from error


def require_packages(packages: dict[str, str], command: str, extra: str) -> None:
    """Check, without importing them, that packages (module to name on the index) are there.

    Raises:
        ConfigurationError: some are not.
    """
    from importlib.util import find_spec

    missing = []
    for module, package in packages.items():
        try:
            found = find_spec(module)
        except ModuleNotFoundError:  # not even the package above it
            found = None
        if found is None:
            missing.append(package)
    if missing:
        raise ConfigurationError(f"{command} needs {', '.join(missing)}; pip install 'samkv-apps[{extra}]'")
