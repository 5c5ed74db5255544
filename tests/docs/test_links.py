"""Every link between the pages leads somewhere."""

from __future__ import annotations

from pathlib import Path

import pages
from links import dead_links


def test_relative_links_lead_somewhere() -> None:
    dead = {pages.name(page): dead_links(page) for page in pages.all_pages()}
    assert not {page: links for page, links in dead.items() if links}


def test_dead_links_are_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# The other: page, `of` two\n")
    good = "[a](other.md) [b](other.md#the-other-page-of-two) [c](#own) [d](https://example.org/x) ![e](other.md)"
    bad = "[a](nothing.md) [b](other.md#nothing) [c](#nothing) ![d](nothing.png)"
    code = "    [code](nothing.md)\n\n```\n[code](nothing.md)\n```"
    page.write_text(f"# Own\n\n{good}\n\n| x |\n| --- |\n| {bad} |\n\n{code}\n")
    assert dead_links(page) == ["nothing.md", "other.md#nothing", "#nothing", "nothing.png"]
