"""What a picture says about an explanation, in plain words."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import PurePath

from samkv_rag.explanation.base import ExplainedChunk, Explanation
from samkv_rag.explanation.strength import BEST, BETTER, DROPPED, GOOD, UNSCORED, Strength

TITLE = "What this answer was read from"
_LEGEND = {
    BEST: "kept, best sixth by score",
    BETTER: "kept, better half",
    GOOD: "kept, the rest",
    UNSCORED: "kept without a score: anchors",
    DROPPED: "dropped",
}
NO_CHUNKS = "The prompt held no chunks."
WHOLE_LEGEND = "Every token was kept, so no part is marked."
_HEADING_MARKS = re.compile(r"^[#>*=\-\s]+")


def chunk_name(chunk: ExplainedChunk, limit: int = 80) -> str:
    """Its source, or else the first line of its text, shortened to ``limit`` characters."""
    first_line = (chunk.text.strip().splitlines() or [""])[0]
    return shortened(chunk.source.strip() or _HEADING_MARKS.sub("", first_line) or "without text", limit)


def shortened(text: str, limit: int) -> str:
    """``text`` in one line; one too long loses its middle, since the ends tell paths and titles apart."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    head = (limit - 1) // 2
    return f"{line[:head].rstrip()}…{line[len(line) - (limit - 1 - head) :].lstrip()}"


def kept_share(num_kept: int, num_tokens: int) -> str:
    """Such as ``34 of 250 tokens kept (13.6%)``."""
    share = num_kept / num_tokens if num_tokens else 0.0
    return f"{num_kept:,} of {num_tokens:,} tokens kept ({share:.1%})"


def short_share(chunk: ExplainedChunk) -> str:
    """Such as ``34 of 250``."""
    return f"{chunk.num_kept:,} of {chunk.num_tokens:,}"


def chunk_origin(chunk: ExplainedChunk) -> str:
    """Where its KV came from."""
    return "KV from the store" if chunk.hit else "KV computed for this prompt"


def origins(explanation: Explanation) -> str:
    """How many chunks there are, and where their KV came from."""
    num_chunks, num_hits = len(explanation.chunks), sum(chunk.hit for chunk in explanation.chunks)
    if num_hits == num_chunks:
        return f"{num_chunks}, KV of all from the store" if num_chunks else "none"
    return f"{num_chunks}, KV of {num_hits} from the store, of {num_chunks - num_hits} computed for this prompt"


def model_label(explanation: Explanation) -> str:
    """The model's name; of a folder only its end, since the rest concerns nobody a picture is shown to."""
    path = PurePath(explanation.model_name)
    return "/".join(path.parts[-2:]) if path.is_absolute() else explanation.model_name


def best_rank(strength: Strength, chunk: ExplainedChunk) -> str:
    """Such as ``1st of 240``: where the chunk's best block stands among all."""
    rank = strength.best_rank(chunk)
    return "none scored" if rank is None else f"{_ordinal(rank)} of {strength.num_blocks:,}"


def bar_words(strength: Strength, chunk: ExplainedChunk) -> str:
    """What a bar shows, for those who do not see it."""
    if chunk.num_kept == 0:
        return "nothing kept"
    pieces = strength.tokens(chunk)
    best = max(pieces, key=lambda piece: piece.level)
    num_runs = sum(kept for kept, _ in groupby(piece.level != DROPPED for piece in pieces))
    runs = f"{num_runs} {'passage' if num_runs == 1 else 'passages'} kept"
    if best.level == UNSCORED:
        return runs
    return f"{runs}, the strongest {best.start / chunk.num_tokens:.0%} into the chunk"


def legend(explanation: Explanation, strength: Strength) -> dict[int, str]:
    """What the levels that occur mean, strongest first."""
    levels = {piece.level for chunk in explanation.chunks for piece in strength.tokens(chunk)}
    meanings = _LEGEND if strength.num_blocks else _LEGEND | {UNSCORED: "kept"}
    return {level: words for level, words in meanings.items() if level in levels}


def is_whole(explanation: Explanation) -> bool:
    """Whether everything was kept, so that there is no selection to show."""
    return explanation.num_kept >= explanation.num_tokens


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{'th' if number % 100 in (11, 12, 13) else ending}"
