"""Answer scores with SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1)."""

from __future__ import annotations

import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation) | {
    code: None for code in range(sys.maxunicode) if unicodedata.category(chr(code)).startswith("P")
}
_UNSPACED = re.compile("([\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff])")
"""Scripts without spaces between words: each character is a word, as in MLQA's evaluation (arXiv 1910.07475)."""


def normalise(text: str) -> str:
    """Lower the case; remove punctuation, articles and extra white space."""
    return " ".join(_UNSPACED.sub(r" \1 ", _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION))).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the normalised prediction equals a normalised answer, else 0."""
    return float(any(normalise(prediction) == normalise(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1 of the words over the answers, in [0, 1]."""
    return max(_word_f1(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def answer_recall(prediction: str, answers: Sequence[str]) -> float:
    """Return the best share, over the answers, of an answer's words that are in the prediction, in [0, 1].

    Unlike F1 it does not punish full sentences. Of the scores by words it agrees best with people's judgement of
    chat models (Adlakha et al. 2023, arXiv 2307.16877).
    """
    return max(_word_recall(normalise(prediction).split(), normalise(answer).split()) for answer in answers)


def _word_recall(predicted: list[str], expected: list[str]) -> float:
    if not expected:  # normalisation removes all of an answer such as "The"
        return float(not predicted)
    return sum((Counter(predicted) & Counter(expected)).values()) / len(expected)


def _word_f1(predicted: list[str], expected: list[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    num_common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * num_common / (len(predicted) + len(expected))
