"""A headless Chromium whose pages record their requests, and the contrast of their texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
CONTRAST = """() => {
    const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const parse = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = parse(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const found = {};
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || element.tagName === 'STYLE') continue;
        const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
        const name = element.tagName + '.' + element.className;
        found[name] = Math.min(found[name] ?? 99, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
    }
    return found;
}"""
"""JavaScript: tag and class of each element with text to its contrast with what is behind it."""


# One a module: while it runs, its thread has an event loop, which asynchronous tests elsewhere need free.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on the PATH")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=OPTIONS)
        yield browser.new_context()
        browser.close()


@pytest.fixture
def show(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A function: HTML to a page that shows it; ``scheme`` and ``width`` beside it.

    ``page.told`` lists every request, console message, dialog and error.
    """
    pages = []

    def show(html: str, scheme: str = "light", width: int = 1000) -> Any:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        page = chromium.new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.told = _listen(page)
        page.goto(file.as_uri())
        page.told.remove(file.as_uri())
        return page

    yield show
    for page in pages:
        page.close()


def _listen(page: Any) -> list[str]:
    told: list[str] = []

    def dismiss(dialog: Any) -> None:
        told.append(dialog.message)
        dialog.dismiss()

    page.on("request", lambda request: told.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    page.on("dialog", dismiss)
    page.on("pageerror", lambda error: told.append(str(error)))
    return told
