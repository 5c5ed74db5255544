"""`samkv demo`: a RAG pipeline over a small corpus, full prefill and SamKV side by side.

corpus.py     70 sections about an invented lighthouse, and questions about them
pipeline.py   the interface of a framework's pipeline: ingestion, Chroma, answers
    llama_index_pipeline.py, langchain_pipeline.py
run.py        the demo from start to end
report.py     its figures, and the same as JSON
screen.py     its output on a terminal
command.py    the command
"""

from __future__ import annotations

from enum import StrEnum


class Framework(StrEnum):
    """The framework whose pipeline answers."""

    LLAMA_INDEX = "llama-index"
    LANGCHAIN = "langchain"
