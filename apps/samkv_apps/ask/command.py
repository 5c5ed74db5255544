"""`samkv ask` and `samkv ingest`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samkv_rag.exceptions import ConfigurationError, ModelNotFoundError

if TYPE_CHECKING:
    from samkv_apps.ask.library import Library

_SECRET = "SAMKV_STORE_SECRET"  # not an option: those can be read in the list of processes
_PACKAGES = {
    "chromadb": "chromadb",
    "llama_index.core": "llama-index-core",
    "llama_index.embeddings.huggingface": "llama-index-embeddings-huggingface",
    "llama_index.llms.samkv": "llama-index-llms-samkv",
    "llama_index.readers.file": "llama-index-readers-file",
    "llama_index.vector_stores.chroma": "llama-index-vector-stores-chroma",
    "rich": "rich",
}
_Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text, Markdown or PDF files, or folders.")]
_Store = Annotated[Path, typer.Option(metavar="DIR", help="Folder for KV, embeddings and what has been read.")]
_Model = Annotated[str, typer.Option(help="Hub id, folder or .gguf file; 'demo' needs no hub.")]
_Embedding = Annotated[str | None, typer.Option(help="Hub id or folder.", show_default="MiniLM")]
_Namespace = Annotated[str, typer.Option(help=f"Tenant to keep apart; ${_SECRET} is its secret.")]
_DEFAULT_STORE = Path("samkv-library")
_DEFAULT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
_DEFAULT_EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"


def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    files: _Files,
    store: _Store = _DEFAULT_STORE,
    model: _Model = _DEFAULT_MODEL,
    embedding: _Embedding = None,
    namespace: _Namespace = "",
    top_k: Annotated[int, typer.Option(min=1, help="Chunks to retrieve.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 256,
    explain: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of what was read.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print answer, sources and figures as JSON.")] = False,
) -> None:
    """Answer a question from documents; what was read before is not read again."""
    _require_text(question)
    library, found = _open(files, store, model, embedding, namespace, max_tokens)
    library.update(found)
    response = library.ask(question, found, top_k)
    text = _show(response, quiet=as_json)
    explanation, metrics = library.llm.last_explanation, library.llm.last_metrics
    if explanation is None or metrics is None:
        raise ConfigurationError("nothing was found in these files; give others")
    named = explanation.with_sources({node.text: _name(node) for node in response.source_nodes})
    if explain is not None:
        from samkv_apps.terminal import write_private

        write_private(explain, named.to_html())
    retained = {chunk.text: chunk.num_retained for chunk in named.chunks}
    sources = [
        {"name": _name(node), "score": node.score, "retained_tokens": retained.get(node.text.strip(), 0), "text": node.text}
        for node in sorted(response.source_nodes, key=lambda node: -(node.score or 0.0))
    ]
    if as_json:
        report = {"question": question, "answer": text, "sources": sources, "metrics": metrics.to_dict()}
        typer.echo(json.dumps(report | {"explanation": named.to_dict()}, indent=2, ensure_ascii=False))
        return
    typer.echo("\n\nscore  retained  source")
    for source in sources:
        typer.echo(f" {source['score']:.2f}  {source['retained_tokens']:8}  {source['name']}")
    typer.echo(
        f"\nfirst token after {metrics.ttft_s:.2f} s · {metrics.sequence_ratio:.1%} of {metrics.chunk_tokens:,} chunk tokens "
        f"retained · KV {metrics.kv_bytes_resident / 1e6:.1f} MB instead of {metrics.kv_bytes_full / 1e6:.1f} MB"
    )


def ingest(
    files: _Files,
    store: _Store = _DEFAULT_STORE,
    model: _Model = _DEFAULT_MODEL,
    embedding: _Embedding = None,
    namespace: _Namespace = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read documents, and compute and store the KV of their chunks, so that `samkv ask` answers at once."""
    library, found = _open(files, store, model, embedding, namespace, max_tokens=1)
    update = library.update(found)
    if as_json:
        typer.echo(json.dumps({"files": update.num_files, "new_chunks": update.num_new}))
    else:
        typer.echo(f"{update.num_files} files, {update.num_new} new chunks")


def _open(
    files: list[Path], store: Path, model: str, embedding: str | None, namespace: str, max_tokens: int
) -> tuple[Library, list[Path]]:
    from samkv_apps.terminal import (
        PACKAGED,
        embedding_model_path,
        language_model_path,
        quieten_libraries,
        require_packages,
        with_hub_hint,
    )

    require_packages(_PACKAGES, "samkv ask", "ask")
    secret = os.environ.get(_SECRET)
    if secret == "":
        raise ConfigurationError(f"{_SECRET} is empty; give it some random text, or unset it for no secret")
    quieten_libraries()
    from samkv_apps.ask.reading import find_files

    found = find_files(files)  # before anything is loaded
    from samkv_apps.ask.library import Library
    from samkv_rag import SamKVEngine

    try:
        path = language_model_path(model, lambda message: typer.echo(message, err=True))
        engine = SamKVEngine.from_pretrained(path, store=store / "kv", namespace=namespace, store_secret=secret)
    except ModelNotFoundError as error:
        raise with_hub_hint(error) from error
    vectors = embedding or (PACKAGED if model == PACKAGED else _DEFAULT_EMBEDDING)
    return Library(engine, store, embedding_model_path(vectors), max_tokens), found


def _show(response: Any, quiet: bool) -> str:
    """Print the answer while it is written, and return it."""
    text = ""
    for piece in response.response_gen:
        shown = piece if text else piece.lstrip()
        text += shown
        if not quiet:
            typer.echo(shown, nl=False)
    return text.strip()


def _name(node: Any) -> str:
    page = node.metadata.get("page_label")
    path = os.path.relpath(node.metadata["file_path"])
    return f"{path}, page {page}" if page else path


def _require_text(question: str) -> None:
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError("the question is not valid UTF-8; set the terminal's encoding to UTF-8") from error
    if not question.strip():
        raise ConfigurationError("the question is empty; give some words")
