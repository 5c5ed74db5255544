"""Labels: text right before each chunk that describes it, such as "file_path: guide.md" or "Source 2:".

A chunk that is moved takes its label along. Nothing marks labels; they are recognised by being alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from samkv_rag.ingestion.recognition import TextSpan

_MAX_BREAKS = 64
"""Most line breaks of a label. Every number up to it is tried."""
_BEGINNING = re.compile(r"\W*\w*\W?")


def split_labels(spans: Sequence[TextSpan]) -> list[TextSpan]:
    """Cut the labels off the texts before the chunks, if every chunk has one.

    Labels start on a new line, have the same number of line breaks, and begin alike except for numbers. The text
    between a chunk and the next label is always the same. The first label ends the text before the first chunk, so
    descriptions that follow their chunks are not taken for labels.
    """
    texts, chunks, rest = spans[:-1:2], spans[1::2], spans[len(spans) // 2 * 2 :]
    if len(chunks) < 2 or any(bool(span.text_digest) != number % 2 for number, span in enumerate(spans)):
        return list(spans)
    for num_breaks in range(min(texts[1].text.count("\n"), _MAX_BREAKS), -1, -1):
        labels = ["\n".join(span.text.rsplit("\n", num_breaks + 1)[-num_breaks - 1 :]) for span in texts]
        befores = [span.text.removesuffix(label) for span, label in zip(texts, labels, strict=True)]
        if befores[0] and len(set(befores[1:])) == 1 and _begin_alike(labels):
            parts: list[TextSpan] = []
            for span, before, label, chunk in zip(texts, befores, labels, chunks, strict=True):
                start_char = span.start_char + len(before)
                parts += [replace(span, text=before), TextSpan(start_char, label, None, is_label=True), chunk]
            return [span for span in (*parts, *rest) if span.text]
    return list(spans)


def _begin_alike(labels: Sequence[str]) -> bool:
    """Return whether all begin with the same word and the sign after it, numbers aside."""
    beginnings = {re.sub(r"\d+", "0", next(_BEGINNING.finditer(label))[0]) for label in labels}
    return len(beginnings) == 1 and not labels[0][:1].isspace() and "" not in beginnings
