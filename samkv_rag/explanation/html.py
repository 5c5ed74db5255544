"""An explanation as HTML: a page of its own, or a fragment of a notebook. No script, nothing loaded."""

from __future__ import annotations

from itertools import count

from samkv_rag.explanation.bar import bar
from samkv_rag.explanation.base import ExplainedChunk, Explanation
from samkv_rag.explanation.markup import element, marked, text
from samkv_rag.explanation.strength import Strength
from samkv_rag.explanation.style import ROOT, css
from samkv_rag.explanation.summary import head, key, overview, strongest
from samkv_rag.explanation.wording import TITLE, chunk_name, chunk_origin, is_whole, kept_share, shortened

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_fragments = count(1)


def page(explanation: Explanation) -> str:
    """A whole document, safe to open whatever the chunks' texts hold."""
    content = element("main", _content(explanation, "chunk", 1), class_="samkv-inner")
    body = element("body", content, class_=_classes(explanation, "samkv-page"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_page_title(explanation)}</title>\n<style>{css()}</style>\n</head>\n{body}\n</html>\n"
    )


def fragment(explanation: Explanation) -> str:
    """One element for a place within a page; its style neither leaks nor is touched by the page's."""
    content = _content(explanation, f"samkv-{next(_fragments)}", 3)
    return element("section", f"<style>{css()}</style>", content, class_=_classes(explanation))


def _page_title(explanation: Explanation) -> str:
    answer = shortened(explanation.answer, 60)
    return text(f"{TITLE}: {answer}" if answer else TITLE)


def _classes(explanation: Explanation, *more: str) -> str:
    return " ".join([ROOT, *more, *(["samkv-whole"] if is_whole(explanation) else [])])


def _content(explanation: Explanation, prefix: str, level: int) -> str:
    """What is shown; chunk i has the id ``prefix-i``, and the title is a heading of ``level``."""
    strength = Strength(explanation)
    chunks = (
        _chunk(chunk, number, strength, f"{prefix}-{number}", level + 1)
        for number, chunk in enumerate(explanation.chunks, start=1)
    )
    return "\n".join(
        [
            head(explanation, level),
            strongest(explanation, strength, prefix),
            overview(explanation, strength, prefix),
            key(explanation, strength),
            *chunks,
        ]
    )


def _chunk(chunk: ExplainedChunk, number: int, strength: Strength, anchor: str, level: int) -> str:
    name = f"{number}. {chunk_name(chunk)}"
    about = f"{kept_share(chunk.num_kept, chunk.num_tokens)} · {chunk_origin(chunk)}"
    return element(
        "article",
        element(f"h{level}", text(name), class_="samkv-name"),
        element("p", text(about), class_="samkv-about"),
        bar(chunk, strength),
        element("div", marked(chunk.text, strength.characters(chunk)), class_="samkv-text", dir="auto"),
        id=anchor,
        class_="samkv-chunk",
        aria_label=f"Chunk {name}",
    )
