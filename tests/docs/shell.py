"""Shell commands of the pages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import dropwhile

from snippets import Snippet

RUN = ("samkv", "cat", "cp", "echo", "export", "head", "ls", "mkdir", "printf", "rm", "sed")
"""Programs that snippets may run: they are quick, and need no network."""
_HEREDOC = re.compile(r"<<'?(\w+)'?.*?^\1$", re.DOTALL | re.MULTILINE)


def commands(snippet: Snippet) -> list[list[str]]:
    """The words of every command of a snippet in a shell's language."""
    script = snippet.source
    if snippet.language == "console":
        script = "\n".join(re.findall(r"^\$ (.*(?:(?<=\\)\n.*)*)", script, re.MULTILINE))
    return list(_split(_HEREDOC.sub("", script).replace("\\\n", " ")))


def is_run(snippet: Snippet) -> bool:
    """Whether all of it is quick and needs no network."""
    return snippet.language == "python" or all(command[0] in RUN for command in commands(snippet))


def _split(script: str) -> Iterator[list[str]]:
    """The commands of a script, without comments and assignments."""
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if not set(token) <= set("&|;"):
                words.append(token)
            elif command := list(dropwhile(_is_assignment, words)):
                yield command
                words = []


def _is_assignment(word: str) -> bool:
    return re.match(r"[A-Za-z_]\w*=", word) is not None
