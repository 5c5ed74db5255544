"""What an answer was read from: ``data.py`` says it, ``render.py`` shows it as a page."""

from samkv_rag.explanation.data import Block, ExplainedChunk, Explanation, Range, explained_chunk

__all__ = ["Block", "ExplainedChunk", "Explanation", "Range", "explained_chunk"]
