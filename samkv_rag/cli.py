"""The command line: `samkv demo`, `samkv ask`, `samkv ingest`, `samkv evaluate`, `samkv store`.

Nothing heavy is imported before a command needs it. Results go to standard output; progress goes to
standard error, on a terminal only. Exit status: 0, 1 for a failure told in one line, 2 for wrong usage.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from samkv_rag import __version__, cli_ask, cli_evaluate, cli_store
from samkv_rag.config import SamKVConfig
from samkv_rag.demo import Framework
from samkv_rag.exceptions import ConfigurationError, SamKVError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cli_store.app, name="store")

# Newer releases of typer carry their own copy of click, older ones import it: found by name, both serve.
_UsageError: type[Any] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_DEMO_MODEL = "SmolLM2-135M-Instruct, fetched once"
_SECRET = "SAMKV_STORE_SECRET"  # not an option: those can be read in the list of processes
_Model = Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file.", show_default=_DEMO_MODEL)]


def main() -> NoReturn:
    """Run the command line; every expected failure is one line on standard error."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        status = app(prog_name="samkv", standalone_mode=False)
    except _UsageError as error:
        _fail(f"{error.format_message()} (see samkv --help)", error.exit_code)
    except (SamKVError, OSError) as error:
        _fail(str(error), 1)
    except typer.Abort:
        _fail("interrupted", 130)
    sys.exit(status if isinstance(status, int) else 0)


@app.callback(invoke_without_command=True)
def samkv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """RAG that answers from the cached KV of retrieved chunks."""
    if version:
        typer.echo(f"samkv {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def demo(
    store: Annotated[Path, typer.Option(help="Folder for chunk KV and vectors; 400 MB.")] = Path("samkv-demo"),
    questions: Annotated[int | None, typer.Option(min=1, help="How many questions.", show_default="all")] = None,
    sequence_ratio: Annotated[float, typer.Option(help="Most of the chunk tokens to keep.")] = 0.15,
    model: _Model = None,
    framework: Annotated[Framework, typer.Option(help="Whose pipeline answers.")] = Framework.LLAMA_INDEX,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Answer questions about 70 documents with LlamaIndex or LangChain, SamKV beside full prefill."""
    from samkv_rag.demo import corpus, quieten_libraries, require_packages

    asked, config = corpus.questions(questions), SamKVConfig(sequence_ratio=sequence_ratio)
    require_packages(framework)
    _require_writable(json_file)
    quieten_libraries()
    from samkv_rag.demo.run import DemoOptions, run_demo
    from samkv_rag.demo.screen import Screen

    report = run_demo(DemoOptions(asked, store, model, config, framework), Screen())
    if json_file is not None:
        json_file.write_text(_as_json(report.to_dict()) + "\n", encoding="utf-8")


app.command()(cli_ask.ask)


@app.command()
def ingest(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Text, Markdown or PDF files, or folders.")],
    store: Annotated[str, typer.Option(metavar="DIR|URL", help="Folder or URL (s3://, redis:// ...) for chunk KV.")],
    model: _Model = None,
    namespace: Annotated[str, typer.Option(help=f"Tenant to keep apart; ${_SECRET} is its secret.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Cut files into chunks and store the KV of those that are new."""
    from samkv_rag.demo import quieten_libraries
    from samkv_rag.documents import read_documents, split_document

    reading, secret = read_documents(files), _store_secret()
    for problem in reading.problems:
        _show_warning(problem)
    quieten_libraries()
    engine = _load_engine(model, store, namespace, secret)
    chunks = [chunk.text for document in reading.documents for chunk in split_document(document, engine.tokenize)]
    report = engine.add_chunks(chunks)
    figures = {
        "files": len(reading.documents),
        "problems": reading.problems,
        "added": report.num_added,
        "reused": report.num_reused,
        "skipped": report.num_skipped,
        "tokens": report.num_tokens,
        "elapsed_s": report.elapsed_s,
    }
    typer.echo(_as_json(figures) if as_json else _in_words(figures))


app.command()(cli_evaluate.evaluate)


def _load_engine(model: str | None, store: str, namespace: str, secret: str | None) -> Any:
    """An engine on a model, by default the demo's."""
    from samkv_rag.demo.models import language_model
    from samkv_rag.engine import SamKVEngine

    name = model or language_model(_progress)
    return SamKVEngine.from_pretrained(name, store=store, namespace=namespace, store_secret=secret)


def _store_secret() -> str | None:
    secret = os.environ.get(_SECRET)
    if secret == "":
        raise ConfigurationError(f"{_SECRET} is empty; give it some random text, or unset it for no secret")
    return secret


def _in_words(figures: dict[str, Any]) -> str:
    files = "1 file" if figures["files"] == 1 else f"{figures['files']} files"
    skipped = f", {figures['skipped']} too short to cache" if figures["skipped"] else ""
    return (
        f"{files}: {figures['added']} chunks added, {figures['reused']} reused{skipped}; "
        f"{figures['tokens']:,} tokens computed in {figures['elapsed_s']:.1f} s"
    )


def _require_writable(file: Path | None) -> None:
    """Find out before a long run, not after it, that its results cannot be written."""
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        raise ConfigurationError(f"--json is {str(file)!r}; it must be a file in a folder that exists")


def _progress(message: str) -> None:
    if sys.stderr.isatty():
        typer.echo(message, err=True)


def _as_json(figures: dict[str, Any]) -> str:
    return json.dumps(figures, indent=2, ensure_ascii=False)


def _show_warning(message: Warning | str, *_: Any) -> None:
    typer.echo(f"samkv: warning: {_one_line(str(message))}", err=True)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"samkv: error: {_one_line(message)}", err=True)
    sys.exit(status)


def _one_line(message: str) -> str:
    return " ".join(message.split())


if __name__ == "__main__":
    main()
