"""Explanations in a real browser: nothing leaves the page, nothing runs, and every text is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.explaining import explanation, hard, hostile, usual, whole
from samkv_rag import Explanation

SEEN = "element => element.innerText"
Show = Callable[..., Any]


def texts(page: Any) -> list[str]:
    return [found.evaluate(SEEN) for found in page.query_selector_all(".samkv-chunk .samkv-text")]


def unwrapped(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def in_page(fragment: str, css: str = "", attributes: str = "") -> str:
    return f"<!doctype html><html><head><style>{css}</style></head><body {attributes}>{fragment}</body></html>"


@pytest.mark.parametrize("name", ["page", "fragment"])
def test_hostile_documents_run_nothing_and_ask_for_nothing(show: Show, name: str) -> None:
    one = hostile()
    page = show(one.to_html() if name == "page" else in_page(one._repr_html_()))
    page.wait_for_load_state("networkidle")
    assert page.told == []
    assert page.evaluate("window.ran") is None
    assert (
        page.evaluate("document.scripts.length + document.images.length + document.querySelectorAll('iframe').length")
        == 0
    )
    assert "<script>window.ran" in texts(page)[1] and "javascript:alert(2)" in texts(page)[5]


def test_even_a_script_that_got_in_would_not_run(show: Show) -> None:
    """The policy holds: the second wall stands where the first, escaping, has been torn down."""
    page = show(
        usual().to_html().replace("</main>", "<script>window.ran = 1</script><img src='http://127.0.0.1:9/'></main>")
    )
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in line for line in page.told) >= 2


@pytest.mark.parametrize("one", [usual(), whole(), explanation()], ids=["usual", "whole", "empty"])
def test_a_page_is_silent_and_shows_the_texts_exactly(show: Show, one: Explanation) -> None:
    page = show(one.to_html())
    assert page.told == []
    assert texts(page) == [chunk.text for chunk in one.chunks]


def test_hard_texts_are_seen_exactly(show: Show) -> None:
    one = hard()
    expected = [unwrapped(c.text).replace("\f", "⟨U+000C⟩").replace("\ud800", "⟨U+D800⟩") for c in one.chunks]
    page = show(one.to_html())
    assert [text.rstrip("\n ") for text in texts(page)] == [text.rstrip("\n ") for text in expected]


def test_kept_text_is_marked_and_seen(show: Show) -> None:
    page = show(usual().to_html())
    marks = page.query_selector_all("#chunk-1 mark")
    kept = ["# The Generators\n\nTwo diesel generators stand in the engine", "names passed down.\n\n\tOil"]
    assert [mark.inner_text().strip() for mark in marks] == kept
    assert all(mark.is_visible() for mark in marks)
    assert page.query_selector_all("#chunk-3 mark") == []


@pytest.mark.parametrize("one", [usual(), hard(), hostile()], ids=["usual", "hard", "hostile"])
@pytest.mark.parametrize("name", ["page", "fragment"])
def test_a_narrow_screen_does_not_scroll_sideways(show: Show, one: Explanation, name: str) -> None:
    html = one.to_html() if name == "page" else in_page(one._repr_html_(), attributes="style='margin: 0'")
    html = html.replace("<head>", "<head><meta name='viewport' content='width=device-width'>", 1)
    page = show(html, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = "element => element.getBoundingClientRect().right > 360"
    assert not any(found.evaluate(wide) for found in page.query_selector_all("td, th, p, div, svg, h1, h2"))


def test_links_lead_to_chunks_by_keyboard(show: Show) -> None:
    page = show(usual().to_html(), width=400)
    hops = page.evaluate("document.links.length")
    for _ in range(hops):
        page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#chunk-3"
    heading = page.query_selector("#chunk-3 h2").bounding_box()
    assert 0 <= heading["y"] < 900


def test_two_fragments_on_one_page_do_not_clash(show: Show) -> None:
    page = show(in_page(usual()._repr_html_() + usual()._repr_html_()))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids)) == 6
    own = "link => link.closest('.samkv-explanation').contains(document.querySelector(link.getAttribute('href')))"
    assert all(link.evaluate(own) for link in page.query_selector_all("a"))


HOST = """
mark, svg, section, article, table, td, p, h3, h4, li, div, rect, span { display: none; visibility: hidden; opacity: 0 }
* { color: red; float: right; font: italic 3px serif; text-transform: uppercase; letter-spacing: 1em }
.host tbody tr:nth-child(odd) { background: red } .host table { table-layout: fixed; width: 10px }
mark::before, p::after { content: "HOST" }
body { text-align: center; white-space: nowrap; visibility: hidden; line-height: 9 }
"""
LOOKS = """names => [...document.querySelectorAll('.samkv-explanation, .samkv-explanation :not(style)')].map(one => {
    const style = getComputedStyle(one);
    if (one.tagName === 'rect') names = ['display', 'visibility', 'opacity', 'fill', 'x', 'y', 'width', 'height'];
    return [one.tagName, ...names.map(name => style[name]), getComputedStyle(one, '::after').content].join('; ');
})"""
NAMES = [
    "display", "color", "backgroundColor", "visibility", "opacity", "float", "font", "textTransform", "textAlign",
    "letterSpacing", "whiteSpace", "lineHeight", "textDecoration", "fill", "tableLayout",
]  # fmt: skip


def test_a_fragment_looks_the_same_whatever_the_pages_style(show: Show) -> None:
    fragment = usual()._repr_html_()
    alone = show(in_page(fragment)).evaluate(LOOKS, NAMES)
    beset = show(in_page(fragment, HOST, "class=host")).evaluate(LOOKS, NAMES)
    assert len(alone) > 50
    assert beset == alone


def test_a_fragment_does_not_touch_the_page_around_it(show: Show) -> None:
    around = "<p id=p class=samkv-text>text <mark>mark</mark></p><table><tr><th>a<td>b</table><h3>c</h3><svg></svg>"
    look = """[...document.querySelectorAll('#p, #p *, #p ~ table *, #p ~ h3, #p ~ svg')].map(
        one => [...getComputedStyle(one)].map(name => getComputedStyle(one).getPropertyValue(name)).join('; '))"""
    bare = show(in_page(around)).evaluate(look)
    assert len(bare) > 6
    boxed = "<div style='contain: size; overflow: hidden'>" + usual()._repr_html_() + "</div>"
    assert show(in_page(around + boxed)).evaluate(look) == bare
