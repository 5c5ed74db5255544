"""Links between the project's pages, as they work when its files are read where they lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKDOWN = MarkdownIt("commonmark").enable("table")
_ABSOLUTE = re.compile(r"[a-z][a-z0-9+.-]*:|//")


def dead_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere: no such file, or no such heading in it."""
    return [link for link in _links(page) if not _ABSOLUTE.match(link) and not _leads_somewhere(page, link)]


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = unquote(link).partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@cache
def anchors(page: Path) -> frozenset[str]:
    """What ``#...`` may name in a page: its headings, as GitHub writes them."""
    tokens = _parse(page)
    titles = [_text(tokens[n + 1]) for n, token in enumerate(tokens) if token.type == "heading_open"]
    return frozenset(_slug(title) for title in titles)


def _slug(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _links(page: Path) -> Iterator[str]:
    for token in _parse(page):
        for child in token.children or ():
            link = child.attrGet("href") or child.attrGet("src")
            if link:
                yield str(link)


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or ())


def _parse(page: Path) -> list[Token]:
    return _MARKDOWN.parse(page.read_text(encoding="utf-8"))
