"""What `samkv ask` can be told, checked before anything heavy."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from samkv_rag.config import SamKVConfig
from samkv_rag.demo.models import MODEL_NAME, cache_folder
from samkv_rag.exceptions import ConfigurationError, EmptyPromptError

_PICTURES = (".html", ".png")


@dataclass(frozen=True)
class AskOptions:
    """A question, and what it is asked of.

    Raises:
        EmptyPromptError: the question is empty.
        ConfigurationError: ``explain`` or ``store`` is no place to write to.
    """

    question: str
    paths: tuple[Path, ...]
    config: SamKVConfig = field(default_factory=SamKVConfig)
    model: str | None = None
    """Hub id, folder or .gguf file; None: the demo's."""
    store: Path | None = None
    top_k: int = 8
    max_tokens: int = 128
    explain: Path | None = None
    """Where to draw what was read: a .html or .png file."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise EmptyPromptError("the question is empty; ask something")
        if self.explain is not None:
            _require_picture(self.explain)
        if self.store is not None and self.store.exists() and not self.store.is_dir():
            raise ConfigurationError(f"--store is {str(self.store)!r}, which is a file; give a folder")

    @property
    def scope(self) -> str:
        """Hash of the absolute paths and the model: what is kept of one folder is no other's."""
        named = [os.path.abspath(path) for path in self.paths]
        model = os.path.abspath(self.model) if self.model and os.path.exists(self.model) else self.model
        identity = "\0".join([model or MODEL_NAME, *named])
        return hashlib.sha256(os.fsencode(identity)).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """Where passages, vectors and KV are kept."""
        return self.store or cache_folder() / "ask" / self.scope

    @property
    def packages(self) -> tuple[str, ...]:
        """Further packages that these options need."""
        is_gguf = self.model is None or self.model.lower().endswith(".gguf")
        draws = self.explain is not None and self.explain.suffix.lower() == ".png"
        return (("accelerate", "gguf") if is_gguf else ()) + (("matplotlib",) if draws else ())


def _require_picture(file: Path) -> None:
    if file.suffix.lower() not in _PICTURES:
        raise ConfigurationError(f"--explain is {str(file)!r}; it must end in {' or '.join(_PICTURES)}")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ConfigurationError(f"--explain is {str(file)!r}; it must be a file in a folder that exists")
