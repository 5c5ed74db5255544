"""The command line's `samkv store ...`: a disk store looked at, checked, pruned, carried elsewhere."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samkv_rag.exceptions import ConfigurationError

if TYPE_CHECKING:
    from samkv_rag.store.disk.index_table import StoredChunk
    from samkv_rag.store.management.inventory import Amount, Scope
    from samkv_rag.store.management.pruning import SourceRule
    from samkv_rag.store.management.verification import Verification

app = typer.Typer()

_Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="Folder that holds chunk KV.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_Namespace = Annotated[str | None, typer.Option(help="Only this namespace; '' is the one without a name.")]
_Model = Annotated[str | None, typer.Option(metavar="FINGERPRINT", help="Only this model; first characters will do.")]
_ID_SCOPE = "Whose sources --keep-sources names: the id_scope of the ingestion step or vector store."


@app.callback(invoke_without_command=True)
def store_commands(context: typer.Context) -> None:
    """Look at, check, prune or copy the chunk KV stored in a folder."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def stat(store: _Store, as_json: _Json = False) -> None:
    """Count what is stored, by namespace and model."""
    from samkv_rag.store.management.inventory import open_existing, statistics

    with open_existing(store) as opened:
        found = statistics(opened)
    groups = [{**asdict(origin), **asdict(amount)} for origin, amount in found.by_origin.items()]
    if as_json:
        _print_json({**asdict(found.total), "groups": groups})
        return
    typer.echo(_in_words(found.total))
    for origin, amount in found.by_origin.items():
        typer.echo(f"  {_named(origin.namespace)}  {_model(origin.model, origin.model_name)}  {_in_words(amount)}")


@app.command()
def ls(store: _Store, namespace: _Namespace = None, model: _Model = None, as_json: _Json = False) -> None:
    """List the chunks, oldest first."""
    from samkv_rag.store.management.inventory import list_chunks, open_existing

    with open_existing(store) as opened:
        chunks = list_chunks(opened, _scope(namespace, model))
    if as_json:
        _print_json([_as_dict(chunk) for chunk in chunks])
        return
    for chunk in chunks:
        typer.echo(_line(chunk))


@app.command()
def verify(
    store: _Store,
    remove_damaged: Annotated[bool, typer.Option("--remove-damaged", help="Delete the damaged files found.")] = False,
    as_json: _Json = False,
) -> None:
    """Check every file in full, and the index against the files; exit with 1 where one is damaged."""
    from samkv_rag.store.management.inventory import open_existing
    from samkv_rag.store.management.verification import verify as verify_store

    with open_existing(store) as opened:
        found = verify_store(opened, remove_damaged)
    if as_json:
        _print_json(asdict(found))
    else:
        _print_verification(found)
    if found.damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    store: _Store,
    older_than: Annotated[str | None, typer.Option(metavar="TIME", help="Not used for so long, such as 30d.")] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The least valuable, until the rest takes 10GB, say."),
    ] = None,
    keep_sources: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Those of sources (node ids) not in FILE, one a line.")
    ] = None,
    id_scope: Annotated[str, typer.Option(metavar="NAME", help=_ID_SCOPE)] = "llama_index",
    namespace: _Namespace = None,
    model: _Model = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, only count.")] = False,
    as_json: _Json = False,
) -> None:
    """Delete chunks; what several options name is deleted, within --namespace and --model."""
    from samkv_rag.store.management.inventory import open_existing
    from samkv_rag.store.management.pruning import PruneRule
    from samkv_rag.store.management.pruning import prune as prune_store
    from samkv_rag.store.units import parse_bytes, parse_seconds

    rule = PruneRule(
        _scope(namespace, model),
        older_than_s=None if older_than is None else parse_seconds(older_than),
        max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
        sources=None if keep_sources is None else _source_rule(keep_sources, id_scope),
    )
    with open_existing(store) as opened:
        gone = prune_store(opened, rule, dry_run)
    if as_json:
        _print_json({**asdict(gone), "dry_run": dry_run})
    else:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {_in_words(gone)}")


@app.command("rebuild-index")
def rebuild_index(store: _Store, as_json: _Json = False) -> None:
    """Make the index again from the chunk files."""
    from samkv_rag.store.management.inventory import open_existing
    from samkv_rag.store.management.inventory import rebuild_index as rebuild

    with open_existing(store) as opened:
        num_chunks = rebuild(opened)
    if as_json:
        _print_json({"num_chunks": num_chunks})
    else:
        typer.echo(f"index made again: {_count(num_chunks, 'chunk')}")


@app.command("export")
def export_(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new .tar file, or a new folder.")],
    store: _Store,
    namespace: _Namespace = None,
    model: _Model = None,
    as_json: _Json = False,
) -> None:
    """Copy the chunk files out; damaged ones are left out."""
    from samkv_rag.store.management.archive import export_chunks
    from samkv_rag.store.management.inventory import open_existing

    with open_existing(store) as opened:
        written = export_chunks(opened, target, _scope(namespace, model))
    if as_json:
        _print_json(asdict(written))
    else:
        typer.echo(f"exported {_in_words(written)}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .tar file or folder that export wrote.")],
    store: _Store,
    as_json: _Json = False,
) -> None:
    """Take chunk files in, each after it was checked; exit with 1 where one was refused."""
    from samkv_rag.store import DiskStore
    from samkv_rag.store.management.archive import import_chunks
    from samkv_rag.store.units import format_bytes

    with DiskStore(store) as opened:
        done = import_chunks(opened, source)
    if as_json:
        _print_json(asdict(done))
    else:
        size = format_bytes(done.num_bytes)
        typer.echo(f"imported {_count(done.num_added, 'chunk')}, {size}; {done.num_present:,} were there already")
        for refused in done.refused:
            typer.echo(f"refused {_printable(refused.name)}: {refused.problem}")
    if done.refused:
        raise typer.Exit(1)


def _scope(namespace: str | None, model: str | None) -> Scope:
    from samkv_rag.store.management.inventory import Scope

    return Scope(namespace, model)


def _source_rule(file: Path, id_scope: str) -> SourceRule:
    from samkv_rag.serving.sources import source_names
    from samkv_rag.store.management.pruning import SourceRule

    try:
        ids = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is no text in UTF-8; give one source a line") from error
    (prefix,) = source_names(id_scope, [""])
    return SourceRule(prefix, frozenset(source_names(id_scope, filter(None, ids))))


def _as_dict(chunk: StoredChunk) -> dict[str, Any]:
    entry, figures = chunk.entry, asdict(chunk)
    del figures["entry"]
    known = {"key": entry.key, "text_digest": entry.text_digest, "begins": entry.prefix, "num_chars": entry.num_chars}
    return {**known, "num_tokens": entry.num_tokens, **asdict(entry.origin), **figures}


def _line(chunk: StoredChunk) -> str:
    from samkv_rag.store.units import format_bytes

    entry, origin = chunk.entry, chunk.entry.origin
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(chunk.last_use_s))
    amount = f"{entry.num_tokens:>6,} tokens  {format_bytes(chunk.num_bytes):>9}  used {used}"
    whose = f"{_named(origin.namespace)}  {_model(origin.model, origin.model_name)}"
    return f"{entry.key[:16]}  {amount}  {whose}  {_printable(entry.prefix)}"


def _print_verification(found: Verification) -> None:
    from samkv_rag.store.units import format_bytes

    for file in found.damaged:
        typer.echo(f"damaged {file.name}: {file.problem}")
    for name in found.newer:
        typer.echo(f"unknown {name}: of a newer release, not checked")
    changes = [
        f"{_count(len(found.leftovers_removed), 'leftover file')} removed" if found.leftovers_removed else "",
        f"{_count(found.lines_corrected, 'index line')} corrected" if found.lines_corrected else "",
        f"{_count(found.lines_removed, 'index line')} without a file removed" if found.lines_removed else "",
    ]
    checked = f"{_count(found.num_files, 'file')}, {format_bytes(found.num_bytes)}: {len(found.damaged):,} damaged"
    typer.echo("; ".join([checked, *filter(None, changes)]))


def _in_words(amount: Amount) -> str:
    from samkv_rag.store.units import format_bytes

    return f"{_count(amount.num_chunks, 'chunk')}, {amount.num_tokens:,} tokens, {format_bytes(amount.num_bytes)}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _named(namespace: str) -> str:
    return namespace or "(no namespace)"


def _model(fingerprint: str, name: str) -> str:
    return f"{_printable(name) or '(no name)'} {fingerprint[:12]}"


def _printable(text: str) -> str:
    """``text`` without what would move a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _print_json(result: Any) -> None:
    typer.echo(json.dumps(result, indent=2))
