"""The command line's `samkv ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from samkv_rag.config import SamKVConfig
from samkv_rag.demo.models import MODEL_NAME

_Paths = Annotated[list[Path], typer.Argument(metavar="FOLDER", help="Folders or files: text, Markdown, PDF.")]
_Model = Annotated[
    str | None, typer.Option(help="Hub id, folder or .gguf file.", show_default=f"{MODEL_NAME}, fetched once")
]
_Store = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder for passages and KV.", show_default="in ~/.cache/samkv_rag")
]
_Explain = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw what was read of each passage: .html or .png.")
]


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In quotation marks.")],
    paths: _Paths,
    explain: _Explain = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print answer, sources and figures as JSON.")] = False,
    top_k: Annotated[int, typer.Option(min=1, help="Passages to retrieve.")] = 8,
    sequence_ratio: Annotated[float, typer.Option(help="Most of their tokens to keep.")] = 0.15,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 128,
    method: Annotated[str, typer.Option(help="How the prompt is read, full_prefill to compare.")] = "scout",
    model: _Model = None,
    store: _Store = None,
) -> None:
    """Answer a question about a folder of documents; only what has changed since is read again."""
    from samkv_rag.ask import require_packages
    from samkv_rag.ask.options import AskOptions
    from samkv_rag.demo import quieten_libraries

    config = SamKVConfig().with_options(sequence_ratio=sequence_ratio, method=method)
    options = AskOptions(question, tuple(paths), config, model, store, top_k, max_tokens, explain)
    require_packages(*options.packages)
    quieten_libraries(bars=False)  # it shows its own
    from samkv_rag.ask.run import run_ask
    from samkv_rag.ask.screen import Screen

    report = run_ask(options, Screen(quiet=as_json))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
