"""Which pages there are, and the servers that their snippets may name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import servers

ROOT = Path(__file__).parents[2]
_HIDDEN = ("build", "dist", "samkv-demo")

SERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "redis": lambda: servers.redis_server(port=6379),
    "s3": lambda: servers.s3_server(port=9000),
}


def user_pages() -> list[Path]:
    """What a user reads."""
    patterns = ("README.md", "docs/**/*.md", "integrations/*/README.md", "benchmarks/domains/README.md")
    return sorted(page for pattern in patterns for page in ROOT.glob(pattern))


def all_pages() -> list[Path]:
    """Every Markdown file of the project."""
    found = (page.relative_to(ROOT) for page in ROOT.rglob("*.md"))
    return sorted(ROOT / page for page in found if not page.parts[0].startswith(".") and page.parts[0] not in _HIDDEN)


def name(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


@contextmanager
def started(needed: set[str]) -> Iterator[dict[str, str]]:
    """Start servers, and yield the names of those that could not be, each with the reason."""
    missing: dict[str, str] = {}
    with ExitStack() as running:
        for server in sorted(needed):
            try:
                running.enter_context(SERVERS[server]())
            except (pytest.skip.Exception, OSError) as error:
                missing[server] = str(error)
        yield missing
