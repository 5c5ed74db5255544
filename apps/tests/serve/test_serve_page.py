"""The page at ``/``, in a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import Running, serving, tiny_engine

from support import tiny
from support.browser import CONTRAST
from support.explaining import SCRIPTS

MIN_CONTRAST = 4.5


@pytest.fixture
def visit(chromium: Any, server: Running) -> Iterator[Callable[..., Any]]:
    """A function: scheme and width to the page. Its ``told`` lists requests to other hosts, messages and errors."""
    pages = []

    def visit(scheme: str = "light", width: int = 1000, url: str = server.url) -> Any:
        page = chromium.new_page()
        pages.append(page)
        page.told = []
        page.on("request", lambda request: request.url.startswith(url) or page.told.append(request.url))
        page.on("console", lambda message: page.told.append(message.text))
        page.on("pageerror", lambda error: page.told.append(str(error)))
        page.on("dialog", lambda dialog: (page.told.append(dialog.message), dialog.dismiss()))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(url)
        return page

    yield visit
    for page in pages:
        page.close()


def ask(page: Any, documents: list[str], question: str = "What does the seventh keeper record?") -> None:
    page.get_by_label("Documents to answer from").fill("\n---\n".join(documents))
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Ask").and_(page.locator(":enabled")).wait_for(timeout=120_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_an_answer_with_what_was_read_beside_full_prefill(visit: Callable[..., Any], scheme: str, width: int) -> None:
    page = visit(scheme, width)
    page.get_by_label("also answer with full prefill").check()
    ask(page, [tiny.text(seed, num_words=120) for seed in range(3)])
    assert page.locator("#error").is_hidden()
    assert page.locator(".answer").count() == 2
    assert all(text.strip() for text in page.locator(".answer").all_inner_texts())
    assert page.locator("#rows th").all_inner_texts() == ["scout", "full prefill"]
    assert page.locator("#read .samkv-chunk").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert {name: ratio for name, ratio in page.evaluate(CONTRAST).items() if ratio < MIN_CONTRAST} == {}
    assert page.told == []


def test_documents_that_want_to_be_markup_are_text(visit: Callable[..., Any]) -> None:
    page = visit()
    hostile = [f"{text} {tiny.text(number)}" for number, text in enumerate(SCRIPTS)]
    ask(page, hostile, question=SCRIPTS[1])
    assert page.locator("#read .samkv-chunk").count() == len(SCRIPTS)
    assert page.evaluate("window.ran ?? null") is None
    assert page.told == []


def test_what_goes_wrong_is_told(visit: Callable[..., Any]) -> None:
    page = visit()
    ask(page, ["tide " * 5000])
    assert "context window" in page.get_by_role("alert").inner_text()
    ask(page, [])
    assert page.get_by_role("alert").count() == 0
    assert page.locator(".answer").inner_text().strip()


def test_a_key_is_asked_for_and_an_answer_stopped(visit: Callable[..., Any]) -> None:
    with serving(tiny_engine(), api_key="secret") as running:
        page = visit(url=running.url)
        page.get_by_label("API key").fill("secret")
        page.get_by_label("Question").fill("tide?")
        page.get_by_label("Question").press("Enter")
        page.locator(".answer", has_text=re.compile(r"\S")).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Ask").and_(page.locator(":enabled")).wait_for()
        running.wait_for("samkv_running", 0)
        assert running.figure("samkv_answer_seconds_count") == 0
        assert page.locator("#error").is_hidden()
