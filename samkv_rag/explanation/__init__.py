"""What an answer was read from: ``data.py`` has the data, ``render.py`` makes a page of it."""

from samkv_rag.explanation.data import Arrived, Block, ExplainedChunk, Explanation, Range, Span, explained_chunk

__all__ = ["Arrived", "Block", "ExplainedChunk", "Explanation", "Range", "Span", "explained_chunk"]
