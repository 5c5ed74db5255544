"""Labels: text right before each chunk that describes it, such as "file_path: guide.md" or "Source 2:".

A chunk that is moved takes its label along. Nothing marks labels; they are recognised by being alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from samkv_rag.ingestion.recognition import TextSpan

_BEGINNING = re.compile(r"\W*\w*\W?")


def split_labels(spans: Sequence[TextSpan]) -> list[TextSpan]:
    """Cut the labels off the texts before the chunks, if every chunk has one.

    Labels start on a new line, have the same number of line breaks, and begin alike except for numbers. The text
    between a chunk and the next label is always the same. The first label ends the text before the first chunk, so
    descriptions that follow their chunks are not taken for labels.
    """
    chunks = [number for number, span in enumerate(spans) if span.text_digest]
    if len(chunks) < 2 or chunks[0] != 1 or any(b - a != 2 for a, b in pairwise(chunks)):
        return list(spans)
    texts = [spans[number - 1].text for number in chunks]
    between = texts[1:]
    for start in _line_starts(between[0]):
        num_breaks = between[0].count("\n", start)
        cuts = [_nth_line_from_end(text, num_breaks) for text in texts]
        labels = [text[cut:] for text, cut in zip(texts, cuts, strict=True)]
        dividing = {text[:cut] for text, cut in zip(between, cuts[1:], strict=True)}
        if cuts[0] and len(dividing) == 1 and _begin_alike(labels):
            cut_at = dict(zip((number - 1 for number in chunks), cuts, strict=True))
            return [part for number, span in enumerate(spans) for part in _cut(span, cut_at.get(number))]
    return list(spans)


def _line_starts(text: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer("\n", text))]


def _nth_line_from_end(text: str, num_breaks: int) -> int:
    """Return where the line begins that is ``num_breaks`` line breaks before the end; 0 if there are fewer."""
    starts = _line_starts(text)
    return starts[-num_breaks - 1] if num_breaks < len(starts) else 0


def _begin_alike(labels: Sequence[str]) -> bool:
    """Return whether all begin with the same word and the sign after it, numbers aside."""
    beginnings = {re.sub(r"\d+", "0", next(_BEGINNING.finditer(label))[0]) for label in labels}
    return len(beginnings) == 1 and not labels[0][:1].isspace() and "" not in beginnings


def _cut(span: TextSpan, at: int | None) -> list[TextSpan]:
    if at is None:
        return [span]
    label = replace(span, start_char=span.start_char + at, text=span.text[at:], is_label=True)
    return [replace(span, text=span.text[:at]), label] if at else [label]
