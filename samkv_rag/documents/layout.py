"""Text as it stands on a page, with words and sentences broken at line ends, back to running text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import partial

_LIGATURES = re.compile("[\ufb00-\ufb06]")
_SOFT_HYPHEN = re.compile("\u00ad[ \t]*\n?")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SPACES = re.compile("[ \t\u00a0]+")
_COMPOUND = re.compile(r"\w+-\w+")
_BROKEN_WORD = re.compile(r"(\w+)-\s*\n\s*(\w+)")
_BROKEN_SENTENCE = re.compile(r"(?<=[^\s.!?:;]) ?\n ?(?=[^\W\d_])")
_MANY_LINES = re.compile(r"\n{3,}")


def running_texts(pages: Sequence[str]) -> list[str]:
    """Join what line ends broke; whether a hyphen belongs to its word, the rest of the document tells."""
    cleaned = [_cleaned(page) for page in pages]
    compounds = {match.lower() for page in cleaned for match in _COMPOUND.findall(page)}
    return [_joined(page, compounds) for page in cleaned]


def _cleaned(page: str) -> str:
    text = _LIGATURES.sub(lambda ligature: unicodedata.normalize("NFKC", ligature[0]), page.replace("\r\n", "\n"))
    text = _UNPRINTABLE.sub(" ", _SOFT_HYPHEN.sub("", text))
    return "\n".join(_SPACES.sub(" ", line).strip() for line in text.split("\n"))


def _joined(page: str, compounds: set[str]) -> str:
    text = _BROKEN_WORD.sub(partial(_whole_word, compounds=compounds), page)
    return _MANY_LINES.sub("\n\n", _BROKEN_SENTENCE.sub(_space_before_lower, text)).strip()


def _whole_word(broken: re.Match[str], compounds: set[str]) -> str:
    """``light-\\nhouse`` is one word, unless ``light-house`` stands elsewhere; ``1914-\\n1918`` keeps its hyphen."""
    first, second = broken.groups()
    compound = f"{first}-{second}"
    is_word = first[-1].isalpha() and second[0].islower()
    return first + second if is_word and compound.lower() not in compounds else compound


def _space_before_lower(line_end: re.Match[str]) -> str:
    """A line that begins with a small letter goes on with the sentence before it."""
    return " " if line_end.string[line_end.end()].islower() else "\n"
