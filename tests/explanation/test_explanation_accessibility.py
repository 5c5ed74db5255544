"""Explanations for everyone: contrast, names, print, and axe's own checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.explaining import explanation, hostile, usual, whole
from samkv_rag import Explanation

Show = Callable[..., Any]
AA = 4.5
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
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const name = element.tagName + '.' + element.className;
        found[name] = Math.min(found[name] ?? 99, ratio);
    }
    return found;
}"""
BACKGROUND = "getComputedStyle(document.querySelector('.samkv-explanation')).backgroundColor"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(21, 23, 27)"


def in_page(html: str, attributes: str = "") -> str:
    return f"<!doctype html><html lang=en><title>Notebook</title><body {attributes}><main><h1>N</h1><h2>O</h2>{html}"


def test_contrast_is_measured_rightly(show: Show) -> None:
    """A pair whose ratio is known, and a pair that is the other way round."""
    page = show("<body style='background: #fff'><p style='color: #777'>a</p><b style='color: #fff; background: #777'>b")
    assert page.evaluate(CONTRAST) == pytest.approx({"P.": 4.478, "B.": 4.478}, abs=0.001)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("one", [usual(), whole(), hostile()], ids=["usual", "whole", "hostile"])
def test_every_text_has_enough_contrast(show: Show, one: Explanation, scheme: str) -> None:
    page = show(one.to_html(), scheme)
    ratios = page.evaluate(CONTRAST)
    assert {name: ratio for name, ratio in ratios.items() if ratio < AA} == {}
    assert page.evaluate(BACKGROUND) == (LIGHT if scheme == "light" else DARK)
    if one.method == "scout":
        assert {f"SPAN.samkv-{level}" for level in range(4)} | {"DIV.samkv-text"} <= set(ratios)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_levels_differ_in_more_than_colour(show: Show, scheme: str) -> None:
    page = show(usual().to_html(), scheme)
    drawn = [
        page.eval_on_selector(
            f".samkv-chunk .samkv-{level}",
            "e => { const s = getComputedStyle(e);"
            " return [s.textDecorationLine, s.textDecorationStyle, s.textDecorationThickness].join(' ') }",
        )
        for level in range(4)
    ]
    assert drawn == ["underline dotted 2px", "underline solid 1px", "underline solid 2px", "underline solid 3px"]
    assert page.eval_on_selector(".samkv-chunk .samkv-text", "e => getComputedStyle(e).textDecorationLine") == "none"


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
    page = show(in_page(usual()._repr_html_(), host), scheme)
    assert page.evaluate(BACKGROUND) == expected
    assert min(page.eval_on_selector("main section", f"() => Object.values(({CONTRAST})())")[2:]) >= AA


def test_paper_is_white(show: Show) -> None:
    page = show(in_page(usual()._repr_html_(), "data-jp-theme-light=false"), "dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(BACKGROUND) == LIGHT
    assert min(page.evaluate(CONTRAST).values()) >= AA


def spoken(page: Any) -> list[tuple[str, str]]:
    """Role and name of each node of the accessibility tree that is not left out, in reading order."""
    session = page.context.new_cdp_session(page)
    nodes = {node["nodeId"]: node for node in session.send("Accessibility.getFullAXTree")["nodes"]}
    told, left = [], [next(iter(nodes))]
    while left:
        node = nodes[left.pop()]
        left += reversed(node.get("childIds", []))
        if not node["ignored"]:
            told.append((node["role"]["value"], node.get("name", {}).get("value", "").strip()))
    return told


def test_a_screen_reader_is_told_what_was_kept(show: Show) -> None:
    told = spoken(show(usual().to_html()))
    assert {"main", "table", "columnheader", "rowheader", "heading", "mark", "list"} <= {role for role, _ in told}
    assert ("article", "Chunk 1. 27-the-generators.md") in told
    assert any(role == "image" and name.endswith("of tokens retained") for role, name in told)
    chunk = told[told.index(("article", "Chunk 1. 27-the-generators.md")) :]
    said = [name for role, name in chunk if role == "StaticText" and name]
    begin = said.index("retained:")
    assert said[begin : begin + 2] == ["retained:", "# The"]
    assert "end of retained." in said[begin:]


def test_headings_have_an_order(show: Show) -> None:
    page = show(usual().to_html())
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => h.tagName)")
    assert levels == ["H1", "H2", "H2", "H2"]


@pytest.mark.parametrize(
    ("html", "scheme"),
    [
        (usual().to_html(), "light"),
        (whole().to_html(), "dark"),
        (explanation().to_html(), "light"),
        (in_page(usual()._repr_html_() + usual()._repr_html_()), "dark"),
    ],
    ids=["page", "whole", "empty", "fragments"],
)
def test_axe_finds_nothing(show: Show, html: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    found = axe.run(show(html, scheme)).response["violations"]
    assert [(rule["id"], node["html"], node["failureSummary"]) for rule in found for node in rule["nodes"]] == []
