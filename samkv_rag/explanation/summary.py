"""What stands above the chunks: the answer, how it was made, the chunks at a glance and the legend."""

from __future__ import annotations

from samkv_rag.explanation.bar import bar
from samkv_rag.explanation.base import ExplainedChunk, Explanation
from samkv_rag.explanation.markup import element, marked, text
from samkv_rag.explanation.passages import Passage, best_passages
from samkv_rag.explanation.strength import DROPPED, Strength
from samkv_rag.explanation.wording import (
    NO_CHUNKS,
    TITLE,
    WHOLE_LEGEND,
    best_rank,
    chunk_name,
    is_whole,
    kept_share,
    legend,
    model_label,
    origins,
    short_share,
)

_NUM_PASSAGES, _PASSAGE_CHARS = 3, 240
_LABEL = element("p", "Best-scored passages", class_="samkv-label")
_COLUMNS = {"Chunk": "source", "Where": "where", "Tokens kept": "number", "Best block": "number samkv-rank"}


def head(explanation: Explanation, level: int) -> str:
    """Title, a heading of ``level``, answer and facts."""
    answer = text(explanation.answer) if explanation.answer.strip() else "(no answer)"
    reason = explanation.fallback_reason
    return (
        element(f"h{level}", TITLE, class_="samkv-title")
        + element("p", answer, class_="samkv-answer", dir="auto")
        + (element("p", text(f"Full prefill ran: {reason}"), class_="samkv-note") if reason else "")
        + _facts(explanation)
    )


def strongest(explanation: Explanation, strength: Strength, prefix: str) -> str:
    """The passages with the best scores, each with a link to its chunk."""
    passages = best_passages(explanation, strength, _NUM_PASSAGES, _PASSAGE_CHARS)
    items = (_passage(explanation.chunks[p.chunk_number], p, strength, prefix) for p in passages)
    return _LABEL + element("ol", *items, class_="samkv-passages") if passages else ""


def key(explanation: Explanation, strength: Strength) -> str:
    """How each level that occurs is drawn."""
    if is_whole(explanation):
        return element("p", WHOLE_LEGEND, class_="samkv-about") if explanation.chunks else ""
    meanings = legend(explanation, strength).items()
    items = (element("li", _sample(level), f" {meaning}") for level, meaning in meanings)
    return element("ul", *items, class_="samkv-legend", aria_label="Legend")


def overview(explanation: Explanation, strength: Strength, prefix: str) -> str:
    """One row a chunk, with a link to it; bars are as long as the chunks."""
    if not explanation.chunks:
        return element("p", NO_CHUNKS)
    longest = max(1, *(chunk.num_tokens for chunk in explanation.chunks))
    columns = (element("th", name, scope="col", class_=f"samkv-{kind}") for name, kind in _COLUMNS.items())
    rows = (
        _row(chunk, number, strength, f"#{prefix}-{number}", chunk.num_tokens / longest)
        for number, chunk in enumerate(explanation.chunks, start=1)
    )
    return element(
        "table",
        element("caption", "Chunks, in the prompt’s order"),
        element("thead", element("tr", *columns)),
        element("tbody", *rows),
        class_="samkv-overview",
    )


def _passage(chunk: ExplainedChunk, passage: Passage, strength: Strength, prefix: str) -> str:
    number = passage.chunk_number + 1
    words = marked(chunk.text, passage.pieces(chunk, strength))
    cut = "…" if passage.start else "", "…" if passage.stop < len(chunk.text) else ""
    return element(
        "li",
        element("p", cut[0], words, cut[1], class_="samkv-text samkv-short", dir="auto"),
        element("p", element("a", text(f"{number}. {chunk_name(chunk, 60)}"), href=f"#{prefix}-{number}")),
    )


def _row(chunk: ExplainedChunk, number: int, strength: Strength, link: str, length: float) -> str:
    is_best = strength.best_rank(chunk) == 1
    return element(
        "tr",
        element("th", f"{number}. ", element("a", text(chunk_name(chunk, 60)), href=link), scope="row"),
        element("td", bar(chunk, strength, length), class_="samkv-where"),
        element("td", short_share(chunk), class_="samkv-number"),
        element("td", best_rank(strength, chunk), class_="samkv-number samkv-rank"),
        class_="samkv-first" if is_best else None,
    )


def _facts(explanation: Explanation) -> str:
    facts = {
        "Read": kept_share(explanation.num_kept, explanation.num_tokens),
        "Chunks": origins(explanation),
        "Method": explanation.method,
        "Model": model_label(explanation),
    }
    rows = (element("dt", name) + element("dd", text(value)) for name, value in facts.items())
    return element("dl", *rows, class_="samkv-facts")


def _sample(level: int) -> str:
    if level == DROPPED:
        return "text"
    return element("mark", element("span", "text", class_=f"samkv-{level}"))
