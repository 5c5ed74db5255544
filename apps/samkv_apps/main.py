"""The command `samkv`.

A command's module is imported when it is called. Results go to standard output; progress goes to standard error,
on a terminal only. Exit status: 0, 1 for a failure with a one-line message, 2 for wrong usage.
"""

from __future__ import annotations

import io
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from samkv_rag import __version__
from samkv_rag.exceptions import SamKVError

_COMMANDS = {
    "ask": "ask.command",
    "demo": "demo.command",
    "evaluate": "evaluate.cli",
    "ingest": "ask.command",
    "serve": "serve.command",
    "store": "store.command",
}
"""Maps a command to the module that has it: a function of the same name, or ``app`` with subcommands."""
_UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's own copy


class _Commands(TyperGroup):
    """Commands that are imported when they are used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"samkv_apps.{_COMMANDS[cmd_name]}")
        group = getattr(module, "app", None)
        if group is None:
            group = typer.Typer(add_completion=False)
            group.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(group)


app = typer.Typer(cls=_Commands, add_completion=False, pretty_exceptions_enable=False)


def main() -> NoReturn:
    """Run the command line; every expected failure is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows "?"
            stream.reconfigure(errors="replace")
    warnings.showwarning = show_warning  # type: ignore[assignment]
    try:
        status = app(prog_name="samkv", standalone_mode=False)
    except _UsageError as error:
        _fail(f"{error.format_message()} (see samkv --help)", error.exit_code)
    except (SamKVError, OSError) as error:
        _fail(str(error), 1)
    except (typer.Abort, KeyboardInterrupt):
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


def show_warning(message: Warning | str, *_: Any) -> None:
    """Print a warning as one line on standard error."""
    typer.echo(f"samkv: warning: {_one_line(str(message))}", err=True)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"samkv: error: {_one_line(message)}", err=True)
    sys.exit(status)


def _one_line(message: str) -> str:
    return " ".join(message.split())


if __name__ == "__main__":
    main()
