"""Explanations in a real browser: nothing leaves the page, nothing runs, and everyone can read every text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from samkv_rag import Explanation
from support.browser import CONTRAST
from support.explaining import HOSTILE, explanation, hard, hostile, usual, whole

Show = Callable[..., Any]
BACKGROUND = "getComputedStyle(document.querySelector('.samkv-explanation')).backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(21, 23, 27)"
# A page that would break whatever stands in it, and what of an element's looks it could break.
HOST = """
mark, svg, section, article, table, td, p, ul, h3, h4, li, div, rect, span { display: none; visibility: hidden }
* { color: red; float: right; font: italic 3px serif; text-transform: uppercase; letter-spacing: 1em; opacity: 0 }
.host tbody tr:nth-child(odd) { background: red } .host table { table-layout: fixed; width: 10px }
mark::before, p::after { content: "HOST" }
body { text-align: center; white-space: nowrap; visibility: hidden; line-height: 9; color-scheme: dark }
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


def as_shown(text: str) -> str:
    """A text with the numbers of its unseen characters in their place."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(f"⟨U+{ord(one):04X}⟩" if one in "\0\f\u202c\u202e\ud800\U000e0041" else one for one in text)


def in_page(fragment: str, css: str = "", attributes: str = "style='margin: 0'") -> str:
    head = f"<title>Notebook</title><meta name=viewport content='width=device-width'><style>{css}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body {attributes}><main><h1>N</h1><h2>O</h2>{fragment}"


@pytest.mark.parametrize("as_page", [True, False], ids=["page", "fragment"])
def test_hostile_texts_run_nothing_and_ask_for_nothing(show: Show, as_page: bool) -> None:
    html = hostile().to_html(fragment=not as_page)
    assert not set("\0\u202e\u202c\U000e0041\ud800") & set(html)
    page = show(html if as_page else in_page(html))
    page.wait_for_load_state("networkidle")
    assert page.told == []
    assert page.evaluate("window.ran") is None
    assert page.evaluate("document.querySelectorAll('script, img, iframe, a:not([href^=\"#\"])').length") == 0
    for place in (".samkv-question", ".samkv-answer", "#chunk-1 .samkv-text" if as_page else "article .samkv-text"):
        assert page.query_selector(place).inner_text() == as_shown(HOSTILE)


def test_even_a_script_that_got_in_would_not_run(show: Show) -> None:
    """The policy holds: the second wall stands where the first, escaping, has been torn down."""
    torn = "<script>window.ran = 1</script><img src='http://127.0.0.1:9/'></main>"
    page = show(usual().to_html().replace("</main>", torn))
    assert page.evaluate("document.scripts.length") == 1
    assert page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in line for line in page.told) >= 2


@pytest.mark.parametrize("one", [usual(), whole(), hard(), explanation()], ids=["usual", "whole", "hard", "empty"])
def test_a_page_is_silent_and_shows_the_texts_exactly(show: Show, one: Explanation) -> None:
    page = show(one.to_html())
    assert page.told == []
    found = [text.inner_text().rstrip("\n ") for text in page.query_selector_all(".samkv-chunk .samkv-text")]
    assert found == [as_shown(chunk.text).rstrip("\n ") for chunk in one.chunks]
    assert page.query_selector(".samkv-question").inner_text() == one.question
    for chunk in one.chunks:
        assert f"{chunk.num_retained} of {chunk.num_tokens} tokens retained" in page.inner_text("main")


def test_retained_text_is_marked_and_seen(show: Show) -> None:
    page = show(usual().to_html())
    style = "e => ['Style', 'Thickness'].map(name => getComputedStyle(e)['textDecoration' + name]).join(' ')"
    drawn = [page.eval_on_selector(f".samkv-chunk .samkv-{level}", style) for level in range(4)]
    assert drawn == ["dotted 2px", "solid 1px", "solid 2px", "solid 3px"], "levels differ in more than colour"
    marks = page.query_selector_all("#chunk-1 mark")
    retained = ["# The Generators\n\nTwo diesel generators stand in the engine", "names passed down.\n\n\tOil"]
    assert [mark.inner_text() for mark in marks] == retained
    assert all(mark.is_visible() for mark in marks)
    assert page.query_selector_all("#chunk-3 mark") == []


def test_what_happened_is_told(show: Show) -> None:
    told = show(whole("/home/someone/models/Qwen2.5-0.5B").to_html()).inner_text("main")
    assert "Full prefill ran: 110 chunk tokens; below min_chunk_tokens (256)" in told
    assert "Every token was retained" in told
    assert "models/Qwen2.5-0.5B" in told and "someone" not in told
    told = show(usual().to_html()).inner_text("main")
    assert all(words in told for words in ("no. 1 of 8", "KV from the store", "KV computed for this prompt"))
    assert "The prompt held no chunks." in show(explanation().to_html()).inner_text("main")


@pytest.mark.parametrize("one", [usual(), hard(), hostile()], ids=["usual", "hard", "hostile"])
@pytest.mark.parametrize("as_page", [True, False], ids=["page", "fragment"])
def test_a_narrow_screen_does_not_scroll_sideways(show: Show, one: Explanation, as_page: bool) -> None:
    page = show(one.to_html() if as_page else in_page(one._repr_html_()), width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = "element => element.getBoundingClientRect().right > 360"
    assert not any(found.evaluate(wide) for found in page.query_selector_all("td, th, p, div, svg, h1, h2"))


def test_two_fragments_on_one_page_do_not_clash(show: Show) -> None:
    page = show(in_page(usual()._repr_html_() + usual()._repr_html_()))
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids)) == 6
    own = "link => link.closest('.samkv-explanation').contains(document.querySelector(link.getAttribute('href')))"
    assert all(link.evaluate(own) for link in page.query_selector_all("a"))


def test_a_fragment_looks_the_same_whatever_the_pages_style(show: Show) -> None:
    fragment = usual()._repr_html_()
    assert fragment.startswith("<section ") and fragment.rstrip().endswith("</section>")
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


@pytest.mark.parametrize(
    ("host", "scheme", "expected"),
    [
        ("data-jp-theme-light=false", "light", DARK),
        ("data-jp-theme-light=true", "dark", LIGHT),
        ("class=vscode-dark", "light", DARK),
        ("class=vscode-light", "dark", LIGHT),
        ("data-md-color-scheme=slate", "light", DARK),
        ("", "dark", DARK),
        ("", "light", LIGHT),
    ],
)
def test_a_fragment_follows_the_theme_of_its_notebook(show: Show, host: str, scheme: str, expected: str) -> None:
    page = show(in_page(usual()._repr_html_(), attributes=host), scheme)
    assert page.evaluate(BACKGROUND) == expected
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(BACKGROUND) == LIGHT, "paper is white"
    assert min(page.evaluate(CONTRAST).values()) >= 4.5


def test_a_screen_reader_is_told_what_was_retained(show: Show) -> None:
    page = show(usual().to_html())
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    told = [(n["role"]["value"], n.get("name", {}).get("value", "").strip()) for n in tree if not n["ignored"]]
    assert {"main", "table", "columnheader", "rowheader", "heading", "mark", "list"} <= {role for role, _ in told}
    assert {("article", "Chunk 1. 27-the-generators.md"), ("StaticText", "retained:")} <= set(told)
    assert {("StaticText", "end of retained."), ("image", "nothing retained")} <= set(told)
    assert ("image", "3 runs retained, the strongest 4% into the chunk") in told


def test_links_lead_to_chunks_by_keyboard(show: Show) -> None:
    page = show(usual().to_html(), width=400)
    for _ in range(page.evaluate("document.links.length")):
        page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#chunk-3"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(show: Show, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    fragments = in_page(usual()._repr_html_() + usual()._repr_html_())
    for html in (usual().to_html(), whole().to_html(), hostile().to_html(), explanation().to_html(), fragments):
        found = axe.run(show(html, scheme)).response["violations"]
        assert [(rule["id"], node["html"]) for rule in found for node in rule["nodes"]] == []
