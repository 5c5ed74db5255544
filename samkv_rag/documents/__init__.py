"""Files to chunks: what `samkv ingest`, `samkv ask` and an evaluation of one's own folder read.

    files.py      which files of a folder are read
    reading.py    a file's text, page by page
    pdf.py        PDF, by pypdf
    layout.py     lines as a page has them, back to running text
    splitting.py  texts to chunks

A file that cannot be read is told and left out; only where none can be read is that an error.
"""

from __future__ import annotations

from samkv_rag.documents.files import find_files
from samkv_rag.documents.reading import Document, Page, Reading, read_documents
from samkv_rag.documents.splitting import CHUNK_TOKENS, Chunk, split_document

__all__ = ["CHUNK_TOKENS", "Chunk", "Document", "Page", "Reading", "find_files", "read_documents", "split_document"]
