"""Shell commands of the pages, looked at without running them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from pages import ROOT
from samkv_rag.cli import app
from shell import RUN


def problems(command: list[str]) -> list[str]:
    """What is wrong with a command: a target, option, extra, package or module that does not exist."""
    program, *arguments = command
    check = _CHECKS.get(program)
    if check is None:
        return [] if program in (*RUN, "git", "cd") else [f"unknown program {program!r}"]
    return check(arguments)


def _samkv(arguments: list[str]) -> list[str]:
    """What the command line's own parser says."""
    words = _before_redirection(arguments)
    try:
        _parse(typer.main.get_command(app), "samkv", words, None)
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return [f"samkv {' '.join(words)}: {message}"]
    return []


def _parse(command: Any, name: str, words: list[str], parent: Any) -> None:
    context = command.make_context(name, words, parent=parent)
    if hasattr(command, "commands"):
        sub_name, sub_command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        _parse(sub_command, sub_name, rest, context)


def _before_redirection(words: list[str]) -> list[str]:
    redirected = [n for n, word in enumerate(words) if re.match(r"\d?>", word)]
    return words[: redirected[0]] if redirected else words


def _make(targets: list[str]) -> list[str]:
    known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [f"no make target {target!r}" for target in targets if target not in known]


def _pip(arguments: list[str]) -> list[str]:
    return [wrong for word in arguments[1:] for wrong in _requirement(word)]


def _requirement(word: str) -> list[str]:
    """A folder to be installed must hold a package, and an extra be one of the project's."""
    extras = re.fullmatch(r"(?:\.|samkv-rag)\[([\w,-]+)\]", word)
    if extras:
        return [f"no extra {extra!r}" for extra in extras[1].split(",") if extra not in _extras()]
    if word == "." or "/" in word:
        return [] if (ROOT / word / "pyproject.toml").exists() else [f"{word!r} holds no package"]
    return []


def _extras() -> list[str]:
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    return re.findall(r"^([\w-]+) = \[", section.partition("\n[")[0], re.MULTILINE)


def _python(arguments: list[str]) -> list[str]:
    if arguments[0] != "-m":
        return [f"python {' '.join(arguments)}: name a module with -m"]
    if arguments[1] in ("pip", "venv"):
        return []
    path = Path(ROOT, *arguments[1].split("."))
    return [] if path.with_suffix(".py").exists() or path.is_dir() else [f"no module {arguments[1]}"]


_CHECKS = {"make": _make, "pip": _pip, "python": _python, "samkv": _samkv}
