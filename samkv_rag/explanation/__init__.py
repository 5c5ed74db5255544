"""What an answer was read from: ``data.py`` says it, ``render.py`` shows it as a page."""

from samkv_rag.explanation.data import Arrived, Block, ExplainedChunk, Explanation, Range, Span, explained_chunk

__all__ = ["Arrived", "Block", "ExplainedChunk", "Explanation", "Range", "Span", "explained_chunk"]
