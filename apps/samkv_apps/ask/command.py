"""`samkv ask` and `samkv ingest`."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samkv_apps import terminal
from samkv_apps.models import PACKAGED, embedding_model
from samkv_rag import EngineConfig
from samkv_rag.checks import half_pair_at
from samkv_rag.exceptions import ConfigurationError

if TYPE_CHECKING:
    from samkv_apps.ask.library import Library

_PACKAGES = {
    "chromadb": "chromadb",
    "llama_index.core": "llama-index-core",
    "llama_index.embeddings.huggingface": "llama-index-embeddings-huggingface",
    "llama_index.llms.samkv": "llama-index-llms-samkv",
    "llama_index.readers.file": "llama-index-readers-file",
    "llama_index.vector_stores.chroma": "llama-index-vector-stores-chroma",
}
_Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text, Markdown or PDF files, or folders.")]
_Store = Annotated[Path, typer.Option(metavar="DIR", help="Folder for KV, embeddings and the list of documents.")]
_Model = Annotated[str, typer.Option(help="Hub id, folder or .gguf file; 'demo' needs no hub.")]
_Embedding = Annotated[str | None, typer.Option(help="Hub id, folder or 'demo'.", show_default="MiniLM")]
_Namespace = Annotated[str, typer.Option(help=f"Tenant; its secret is in ${terminal.SECRET}.")]
_MaxBytes = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Largest size of new KV, such as 10GB; more is not computed.")
]
_Storage = Annotated[str, typer.Option(help="'full', or 'index' for an eighth of the bytes.")]
_DEFAULT_STORE = Path("samkv-library")
_DEFAULT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"
_DEFAULT_EMBEDDING = "sentence-transformers/all-MiniLM-L6-v2"


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    files: _Files,
    store: _Store = _DEFAULT_STORE,
    model: _Model = _DEFAULT_MODEL,
    embedding: _Embedding = None,
    namespace: _Namespace = "",
    top_k: Annotated[int, typer.Option(min=1, help="Chunks to retrieve.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    explain: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML page of what was read.")] = None,
    storage: _Storage = "full",
    max_bytes: _MaxBytes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print answer, sources and figures as JSON.")] = False,
) -> None:
    """Answer a question from documents. Only new and changed files are read."""
    if not question.strip():
        raise ConfigurationError("the question is empty; give some words")
    if half_pair_at(question) is not None:
        raise ConfigurationError("the question is not valid UTF-8; set the terminal's encoding to UTF-8")
    library, found = _open(files, store, model, embedding, namespace, max_tokens, storage)
    library.update(found, max_bytes, folders=_folders(files))
    response = library.ask(question, found, top_k)
    if not response.source_nodes:
        raise ConfigurationError("nothing was found in these files; give other files")
    text = _show(response, quiet=as_json)
    explanation, metrics = library.llm.last_explanation, library.llm.last_metrics
    assert explanation is not None  # the answer has been read
    assert metrics is not None
    explanation = explanation.with_sources({node.text: _name(node) for node in response.source_nodes})
    if explain is not None:
        terminal.write_private(explain, explanation.to_html())
    sources = _sources(response, {chunk.text: chunk.num_retained for chunk in explanation.chunks})
    if as_json:
        report = {"question": question, "answer": text, "sources": sources, "metrics": metrics.to_dict()}
        typer.echo(json.dumps(report | {"explanation": explanation.to_dict()}, indent=2, ensure_ascii=False))
        return
    typer.echo("\n\nscore  retained  source")
    for source in sources:
        typer.echo(f" {source['score']:.2f}  {source['retained_tokens']:8}  {source['name']}")
    typer.echo(
        f"\nfirst token after {metrics.ttft_s:.2f} s · "
        f"{metrics.sequence_ratio:.1%} of {metrics.chunk_tokens:,} chunk tokens retained · "
        f"KV {metrics.kv_bytes_resident / 1e6:.1f} MB instead of {metrics.kv_bytes_full / 1e6:.1f} MB"
    )


def ingest(
    files: _Files,
    store: _Store = _DEFAULT_STORE,
    model: _Model = _DEFAULT_MODEL,
    embedding: _Embedding = None,
    namespace: _Namespace = "",
    storage: _Storage = "full",
    max_bytes: _MaxBytes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    num_processes: Annotated[
        int | None, typer.Option("--ray", min=1, metavar="N", help="Compute the KV in N processes, by Ray Data.")
    ] = None,
) -> None:
    """Read documents, then compute and store the KV of their chunks, so that `samkv ask` answers at once."""
    compute = None
    if num_processes is not None:
        terminal.require_packages({"ray": "ray[data,serve]"}, "--ray", "ray")
        from samkv_apps.ask import bulk

        options = _engine_options(namespace, storage)
        compute = partial(bulk.ingest, num_processes=num_processes, model=model, store=store / "kv", **options)
    library, found = _open(files, store, model, embedding, namespace, 1, storage)
    num_new = library.update(found, max_bytes, compute, _folders(files))
    report = json.dumps({"files": len(found), "new_chunks": num_new})
    typer.echo(report if as_json else f"{len(found)} files, {num_new} new chunks")


def _open(
    files: list[Path], store: Path, model: str, embedding: str | None, namespace: str, max_tokens: int, storage: str
) -> tuple[Library, list[Path]]:
    terminal.require_packages(_PACKAGES, "samkv ask", "ask")
    options = _engine_options(namespace, storage)
    terminal.quieten_libraries()
    from samkv_apps.ask.reading import find_files

    found = find_files(files)  # fails before a model is loaded
    from samkv_apps.ask.library import Library

    engine = terminal.open_engine(model, store / "kv", **options)
    name = embedding or ("demo" if model in PACKAGED else _DEFAULT_EMBEDDING)
    path = str(embedding_model()) if name == "demo" else name
    return Library(engine, store, path, max_tokens), found


def _folders(files: list[Path]) -> list[Path]:
    return [path.resolve() for path in files if path.is_dir()]


def _engine_options(namespace: str, storage: str) -> dict[str, Any]:
    config = EngineConfig(storage=storage)  # type: ignore[arg-type]  # EngineConfig checks it
    return {"namespace": namespace, "store_secret": terminal.store_secret(), "config": config}


def _show(response: Any, quiet: bool) -> str:
    """Print the answer while it is generated, and return it."""
    text = ""
    for piece in response.response_gen:
        text += (shown := piece if text else piece.lstrip())
        if not quiet:
            typer.echo(shown, nl=False)
    return text.strip()


def _sources(response: Any, retained: dict[str, int]) -> list[dict[str, Any]]:
    """Describe the retrieved chunks, best first."""
    return [
        {"name": _name(n), "score": n.score, "retained_tokens": retained.get(n.text.strip(), 0), "text": n.text}
        for n in sorted(response.source_nodes, key=lambda node: -(node.score or 0.0))
    ]


def _name(node: Any) -> str:
    path, page = os.path.relpath(node.metadata["file_path"]), node.metadata.get("page_label")
    return f"{path}, page {page}" if page else path
