"""Labels: recognised by being alike, and only before their chunks."""

from __future__ import annotations

from itertools import pairwise

import pytest

from samkv_rag.ingestion.recognition import TextSpan
from samkv_rag.prompt.labels import split_labels


def spans_of(*texts: str) -> list[TextSpan]:
    """Upper-case texts are chunks."""
    starts = [sum(map(len, texts[:number])) for number in range(len(texts))]
    return [
        TextSpan(start, text, text if text.isalpha() and text.isupper() else None)
        for start, text in zip(starts, texts, strict=True)
    ]


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (
            ("Context:\n---\nfile: a.md\n\n", "A", "\n\nfile: b.md\n\n", "B", "\n\nfile: c\n\n", "C", "\n---\nq"),
            ["file: a.md\n\n", "file: b.md\n\n", "file: c\n\n"],
        ),
        (("Context:\nfile: a.md\n\n", "A", "\n\nfile: b.md\n\n", "B", "\n\nq"), ["file: a.md\n\n", "file: b.md\n\n"]),
        (
            ("Use:\nfile: 1\npage: 2\n\n", "A", "\nfile: 3\npage: 2\n\n", "B", "?"),
            ["file: 1\npage: 2\n\n", "file: 3\npage: 2\n\n"],
        ),
        (("Use:\n[1] ", "A", "\n\n[2] ", "B", "\n\n[10] ", "C", "\nq"), ["[1] ", "[2] ", "[10] "]),
        (("Use:\n9. ", "A", "\n10. ", "B", "\nq"), ["9. ", "10. "]),
        (("<doc id=1>\n<text>\n", "A", "\n</text>\n</doc>\n<doc id=2>\n<text>\n", "B", "\nq"), ["<text>\n"] * 2),
        (("Use\n<doc id=1>\n", "A", "\n</doc>\n<doc id=2>\n", "B", "\n</doc>\nq"), ["<doc id=1>\n", "<doc id=2>\n"]),
        (("Context\n", "A", "\n(source: a)\n\n", "B", "\n(source: b)\n\n", "C", "\n(source: c)\nq"), []),
        (("Context:\n", "A", "\nChapter 2\n", "B", "\nChapter 3\n", "C", "\nq"), []),
        (("Use:\n\n", "A", "\n\n", "B", "\n\n", "C", "\nq"), []),
        (("Use:\nfile: a\n", "A", "B", "\nfile: c\n", "C", "\nq"), []),
        (("Use:\nfile: a\n", "A", "\nfile: b\n", "B", "\nmore\nfile: c\n", "C", "\nq"), []),
        (("A", "\nfile: b\n", "B", "\nfile: c\n", "C", "\nq"), []),
        (("Use:\nfile: a\n", "A", "\nq"), []),
        (("only text",), []),
        ((), []),
    ],
)
def test_labels_are_cut_off_where_every_chunk_has_one(texts: tuple[str, ...], labels: list[str]) -> None:
    spans = split_labels(spans_of(*texts))
    found = [span.text for span in spans if span.is_label]
    assert found == labels
    assert "".join(span.text for span in spans) == "".join(texts)
    assert [span.start_char for span in spans] == [sum(len(s.text) for s in spans[:n]) for n in range(len(spans))]
    for label, behind in pairwise(spans):
        assert not label.is_label or behind.text_digest
