"""`samkv store`: inspect, check, prune and copy a disk store."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samkv_rag.exceptions import ConfigurationError

if TYPE_CHECKING:
    from samkv_apps.store.admin import Amount

app = typer.Typer(name="store", add_completion=False)

_Store = Annotated[str, typer.Option("--store", metavar="DIR", help="Folder with chunk KV.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_Namespace = Annotated[str | None, typer.Option(help="Only this namespace; '' is the one without a name.")]
_Model = Annotated[str | None, typer.Option(metavar="FINGERPRINT", help="Only this model; a prefix is enough.")]
_SECONDS = {"S": 1, "M": 60, "H": 3600, "D": 86400, "W": 7 * 86400}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@app.callback(invoke_without_command=True)
def store_commands(context: typer.Context) -> None:
    """Inspect, check, prune or copy the chunk KV in a folder."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def stat(store: _Store, as_json: _Json = False) -> None:
    """Show the number and size of chunks by namespace and model, and the bytes per character of text."""
    from samkv_apps.store import admin

    with admin.open_existing(store) as opened:
        groups = admin.amounts(opened)
    total = admin.Amount(*(sum(figures) for figures in zip(*map(astuple, groups.values()), strict=True)))
    if as_json:
        listed = [{"namespace": n, "model": m, "model_name": name, **asdict(a)} for (n, m, name), a in groups.items()]
        _print_json({**asdict(total), "groups": listed})
        return
    typer.echo(_in_words(total))
    for (namespace, model, model_name), amount in groups.items():
        typer.echo(f"  {namespace or '(no namespace)'}  {model_name or '(unknown)'} {model[:8]}  {_in_words(amount)}")


@app.command()
def ls(store: _Store, namespace: _Namespace = None, model: _Model = None, as_json: _Json = False) -> None:
    """List the chunks, least recently used first."""
    from samkv_apps.store import admin

    with admin.open_existing(store) as opened:
        found = admin.entries(opened, namespace, model)
    if as_json:
        _print_json([stored._asdict() | (asdict(who) if who else {}) for stored, who in found])
        return
    for stored, who in found:
        tokens = f"{who.num_tokens:,} tokens" if who else "not in the catalog"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(stored.last_use_s))
        typer.echo(f"{stored.key[:12]}  {format_bytes(stored.num_bytes):>9}  {used}  {tokens}")


@app.command()
def verify(
    store: _Store,
    remove_damaged: Annotated[bool, typer.Option("--remove-damaged", help="Delete damaged files.")] = False,
    as_json: _Json = False,
) -> None:
    """Check every file in full; exit with 1 if one is damaged. Checksums find damage, not forgery."""
    from samkv_apps.store import admin

    with admin.open_existing(store) as opened:
        found = admin.verify(opened, remove_damaged)
    if as_json:
        _print_json(asdict(found))
    else:
        typer.echo(f"sound: {_in_words(found.sound)}")
        for key, reason in found.damaged.items():
            typer.echo(f"damaged: {key}: {reason}{' (deleted)' if remove_damaged else ''}")
    if found.damaged:
        raise typer.Exit(1)


@app.command()
def prune(
    store: _Store,
    older_than: Annotated[str | None, typer.Option(metavar="TIME", help="Chunks not used for this time: 30d.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Least recently used chunks, until the rest takes SIZE: 10GB.")
    ] = None,
    keep_sources: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Chunks of sources (node ids) not in FILE, one per line.")
    ] = None,
    id_scope: Annotated[str, typer.Option(metavar="NAME", help="The id_scope of --keep-sources.")] = "",
    namespace: _Namespace = None,
    model: _Model = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing, only count.")] = False,
    as_json: _Json = False,
) -> None:
    """Delete the chunks that any option names, within --namespace and --model."""
    from samkv_apps.store import admin
    from samkv_rag.sources import source_names

    if keep_sources is not None and not id_scope:
        raise ConfigurationError("--keep-sources needs --id-scope, the id_scope of the ingestion step or vector store")
    if older_than is None and max_bytes is None and keep_sources is None:
        raise ConfigurationError("nothing says what to delete; give --older-than, --max-bytes or --keep-sources")
    try:
        text = None if keep_sources is None else keep_sources.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{keep_sources} is not UTF-8; write it again in UTF-8") from error
    kept = None if text is None else set(source_names(id_scope, text.split("\n")))
    with admin.open_existing(store) as opened:
        gone = admin.prune(
            opened,
            namespace,
            model,
            older_than_s=None if older_than is None else parse_seconds(older_than),
            max_bytes=None if max_bytes is None else parse_bytes(max_bytes),
            keep_sources=kept,
            id_scope=source_names(id_scope, [""])[0],
            dry_run=dry_run,
        )
    if as_json:
        _print_json({**asdict(gone), "dry_run": dry_run})
    else:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {_in_words(gone)}")


@app.command("export")
def export_(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="A new .tar file.")],
    store: _Store,
    namespace: _Namespace = None,
    model: _Model = None,
) -> None:
    """Copy the chunks into a .tar file, without damaged ones."""
    from samkv_apps.store import admin

    with admin.open_existing(store) as opened:
        typer.echo(f"exported {_in_words(admin.export_chunks(opened, target, namespace, model))}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `samkv store export`.")], store: _Store
) -> None:
    """Add the chunks of an exported file; refuse damaged ones and exit with 1."""
    from samkv_apps.store import admin
    from samkv_rag.store.disk import DiskStore

    with DiskStore(store) as opened:
        copied, refused = admin.import_chunks(opened, source)
    typer.echo(f"imported {_in_words(copied)}")
    for name, reason in refused.items():
        typer.echo(f"refused: {name}: {reason}")
    if refused:
        raise typer.Exit(1)


def parse_bytes(text: str) -> int:
    """``"10GB"`` to 10,000,000,000, ``"1GiB"`` to 1,073,741,824, ``"100"`` to 100."""
    return int(_scaled(text, _BYTES, "B", "a number of bytes such as 10GB, 512MiB or 1000000"))


def parse_seconds(text: str) -> float:
    """``"30d"`` to 2,592,000; units are s, m (minutes), h, d and w."""
    return _scaled(text, _SECONDS, "", "a length of time such as 30d or 12h")


def format_bytes(num_bytes: float) -> str:
    """``40.1 GB``; powers of 1000."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:,.0f} bytes" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _scaled(text: str, units: dict[str, int], default: str, wanted: str) -> float:
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)", text.strip())
    unit = (found[2].upper() or default) if found else ""
    if found is None or unit not in units:
        raise ConfigurationError(f"{text!r} is not {wanted}")
    return float(found[1]) * units[unit]


def _in_words(amount: Amount) -> str:
    chunks = "1 chunk" if amount.num_chunks == 1 else f"{amount.num_chunks:,} chunks"
    per_char = f", {amount.num_bytes / amount.num_chars:,.0f} for a character of text" if amount.num_chars else ""
    return f"{chunks}, {format_bytes(amount.num_bytes)}{per_char}"


def _print_json(figures: Any) -> None:
    typer.echo(json.dumps(figures, indent=2, ensure_ascii=False))
