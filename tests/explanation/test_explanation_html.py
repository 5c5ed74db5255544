"""Explanations as HTML, read by a parser: everything is there, and text stays text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from explaining import HOSTILE, PROSE, chunk, explanation, hard, hostile, offsets, usual, whole
from samkv_rag import Explanation
from samkv_rag.explanation.markup import element, text
from samkv_rag.explanation.style import ROOT, css

VOID = {"meta"}


class Reader(HTMLParser):
    """Tags, attributes and text of a document; complains of what is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def both(one: Explanation) -> list[str]:
    return [one.to_html(), one._repr_html_()]


def unmarked(html: str) -> str:
    return re.sub(r"</?(mark|span)[^>]*>", "", html)


@pytest.mark.parametrize("one", [usual(), whole(), hard(), explanation()], ids=["usual", "whole", "hard", "empty"])
def test_it_is_well_formed_and_holds_every_text(one: Explanation) -> None:
    for html in both(one):
        reader = Reader(html)
        for each in one.chunks:
            assert unmarked(text(each.text)) in unmarked(html)
            assert f"{each.num_kept} of {each.num_tokens} tokens kept" in reader.text
        assert one.answer in reader.text


def test_hostile_documents_make_no_elements_and_no_attributes() -> None:
    usual_tags = {tag for html in both(usual()) for tag in Reader(html).tags} | {"span"}
    for html in both(hostile()):
        reader = Reader(html)
        assert set(reader.tags) <= usual_tags
        assert not any(name.startswith("on") for name, _ in reader.attributes)
        assert {name for name, _ in reader.attributes} & {"src", "srcdoc", "action"} == set()
        assert all((value or "").startswith("#") for name, value in reader.attributes if name == "href")
        assert "<script>window.ran" in reader.text


def test_unseen_characters_are_shown_by_number() -> None:
    for html in both(hostile()):
        assert not set("\0\u202e\u202c\U000e0041\ud800") & set(html)
        assert {"U+0000", "U+202E", "U+202C", "U+E0041"} <= set(Reader(html).words)
    explanation(chunk("\ud800")).to_html().encode()


def test_a_page_says_what_it_may_do_and_loads_nothing() -> None:
    html = usual().to_html()
    assert (
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        in html
    )
    assert '<html lang="en">' in html
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in html
    assert "<title>What this answer was read from: They are Flora and Mabel.</title>" in html
    assert "url(" not in html and "@import" not in html and "<link" not in html and "<script" not in html


def test_equal_explanations_make_equal_pages() -> None:
    assert usual().to_html() == usual().to_html()
    assert Explanation.from_dict(json.loads(json.dumps(usual().to_dict()))).to_html() == usual().to_html()


def test_a_fragment_is_one_element_with_ids_of_its_own() -> None:
    one, other = usual()._repr_html_(), usual()._repr_html_()
    assert one.startswith("<section ") and one.endswith("</section>")
    ids = [{value for name, value in Reader(html).attributes if name == "id"} for html in (one, other)]
    assert len(ids[0]) == len(ids[1]) == 3
    assert not ids[0] & ids[1]


def test_every_rule_is_about_the_root_alone() -> None:
    one_word = css().replace(":is(th, td)", "").replace(":not(style, svg *)", "")
    selectors = [found for found in re.findall(r"[^{};]+(?={)", one_word) if not found.lstrip().startswith("@media")]
    assert len(selectors) > 30
    assert [part for selector in selectors for part in selector.split(",") if f".{ROOT}" not in part] == []


def test_the_numbers_of_a_chunk_are_shown() -> None:
    read = Reader(usual().to_html()).text
    assert f"14 of {len(offsets(PROSE))} tokens kept" in read
    assert "1. 27-the-generators.md" in read
    assert "3. Nothing at all was kept of this one." in read
    assert "1st of 8" in read
    assert "KV from the store" in read
    assert "KV computed for this prompt" in read


def test_full_prefill_says_why_and_marks_nothing() -> None:
    html = whole().to_html()
    assert "Full prefill ran: 110 chunk tokens; below min_chunk_tokens (256)" in Reader(html).text
    assert f'class="{ROOT} samkv-page samkv-whole"' in html
    assert "Every token was kept" in Reader(html).text
    assert f'class="{ROOT} samkv-page"' in usual().to_html()


def test_of_a_models_folder_only_the_end_is_shown() -> None:
    read = Reader(explanation(chunk(), model_name="/home/someone/models/Qwen2.5-0.5B").to_html()).text
    assert "models/Qwen2.5-0.5B" in read
    assert "someone" not in read


def test_element_and_text_escape() -> None:
    assert element("a", text('<b>&"'), href="\"'<>&\0") == (
        '<a href="&quot;&#x27;&lt;&gt;&amp;U+0000">&lt;b&gt;&amp;&quot;</a>'
    )
    assert text("a\r\nb\rc") == "a\nb\nc"
    assert text("a\tb\n") == "a\tb\n"
    assert PROSE in text(PROSE)
    assert "<" not in text(HOSTILE).replace('<span class="samkv-unseen">', "").replace("</span>", "")
