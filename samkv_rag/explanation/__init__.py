"""What was read for an answer: the picture of a selection.

base.py        Explanation: each chunk's text, the tokens kept of it and the scores of its blocks
explainer.py   from what a generation kept to an Explanation
html.py        the same as a page, self-contained
png.py         the same as an image, by matplotlib
"""

from __future__ import annotations

from samkv_rag.explanation.base import Block, ExplainedChunk, Explanation, Span
from samkv_rag.explanation.explainer import Explainer

__all__ = ["Block", "ExplainedChunk", "Explainer", "Explanation", "Span"]
