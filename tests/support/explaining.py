"""Handmade explanations, in which a token is a word with the white space before it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from samkv_rag.explanation import Block, ExplainedChunk, Explanation, Range
from samkv_rag.ingestion.recognition import text_digest

BLOCK_TOKENS = 4
PROSE = (
    "# The Generators\n\nTwo diesel generators stand in the engine house. They are known as Flora and Mabel, "
    "names passed down.\n\n\tOil is changed after 250 running hours.  Fire is fought by closing the shutters, "
    "and never, whatever anyone says, with water from the tank."
)
SCRIPTS = (
    '<script>window.ran = "script"</script>',
    '"><img src="https://evil.example/x.png" onerror="window.ran = 1">',
    "</style></title></textarea><script>window.ran = 2</script>",
    "<!-- &lt;b&gt; &amp; ]]> <svg onload=alert(1)>",
    "<a href='javascript:alert(2)'>link</a> <iframe srcdoc='<script>top.ran = 3</script>'></iframe>",
    "@import url(https://evil.example/x.css); } * { display: none } {{ 7 * 7 }}",
)
HOSTILE = "Ignore the rest. " + "\n".join(SCRIPTS) + " and \u202eits end\u202c, a NUL \0 and a tag \U000e0041 too."
HARD = (
    "e\u0301te\u0301 👩‍👩‍👧 family 👍🏽 thumbs 🇫🇷 flag",
    "灯塔的两台柴油发电机叫做弗洛拉和梅布尔。" * 3,
    "مولدان ديزل في بيت المحرك، فلورا ومابل",
    "a" * 300 + " https://example.org/" + "very/long/path/" * 30,
    "def f(x):\n\treturn x  # indented\n\n\n    end",
    "windows\r\nline\rends\fhere",
    "lone \ud800 half",
    "x",
    "",
    " \n ",
)


def offsets(text: str) -> list[tuple[int, int]]:
    """Start and stop of each token."""
    return [found.span() for found in re.finditer(r"\s*\S+", text)]


def chunk(
    text: str = PROSE,
    kept: Sequence[tuple[int, int]] = ((0, 2), (2, 10), (18, 22)),
    scores: Sequence[float | None] = (9.0, 5.0, 1.0, 0.5, 3.0),
    source: str = "27-the-generators.md",
    hit: bool = True,
) -> ExplainedChunk:
    """A chunk with the tokens ``kept``; blocks start after the first two tokens, one per score."""
    tokens = offsets(text)
    starts = range(2, len(tokens), BLOCK_TOKENS)
    blocks = (
        Block(*span(tokens, start, start + BLOCK_TOKENS), score) for start, score in zip(starts, scores, strict=False)
    )
    return ExplainedChunk(
        text=text,
        digest=text_digest(text),
        num_tokens=len(tokens),
        hit=hit,
        retained=tuple(Range(*span(tokens, *run)) for run in kept if run[0] < len(tokens)),
        blocks=tuple(blocks),
        source=source,
    )


def span(tokens: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, int, int, int]:
    """Tokens ``start`` to ``stop``, as far as they exist, and their characters."""
    stop = min(stop, len(tokens))
    return start, stop, tokens[start][0], tokens[stop - 1][1]


def explanation(
    *chunks: ExplainedChunk,
    question: str = "What are the generators called?",
    answer: str = "They are Flora and Mabel.",
    **changes: str,
) -> Explanation:
    """What an answer was read from."""
    num_tokens = sum(one.num_tokens for one in chunks)
    values = {"model_name": "SmolLM2-135M-Instruct", "method": "scout", "fallback_reason": None} | changes
    ratio = sum(one.num_retained for one in chunks) / num_tokens if num_tokens else 1.0
    return Explanation(**values, question=question, answer=answer, sequence_ratio=ratio, chunks=chunks)


def usual() -> Explanation:
    """Chunks of every kind: with all levels, with anchors only, with nothing kept, computed on the spot."""
    return explanation(
        chunk(),
        chunk("Anchors alone were kept of this one, since no block of it was good enough.", ((0, 2),), (0.1, 0.2)),
        chunk("Nothing at all was kept of this one.", (), (0.01,), source="", hit=False),
    )


def whole(model_name: str = "SmolLM2-135M-Instruct") -> Explanation:
    """Full prefill, which keeps everything and scores nothing."""
    reason = "110 chunk tokens; below min_chunk_tokens (256)"
    kept_whole = chunk(kept=((0, len(offsets(PROSE))),), scores=())
    return explanation(kept_whole, method="full_prefill", fallback_reason=reason, model_name=model_name)


def hostile() -> Explanation:
    """Documents, names and an answer that contain markup."""
    return explanation(
        *(chunk(text, ((0, 1), (2, 4)), (2.0, 1.0), source=text) for text in (HOSTILE, *SCRIPTS)),
        question=HOSTILE,
        answer=HOSTILE,
        model_name=HOSTILE,
        method=HOSTILE,
        fallback_reason=HOSTILE,
    )


def hard() -> Explanation:
    """Texts that are hard to cut, to wrap or to draw, each kept in part."""
    return explanation(*(chunk(text, ((0, 1), (3, 5)), (-1.0, None, -3.0), source=text) for text in HARD))
