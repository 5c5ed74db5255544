"""LlamaIndex integration of samkv_rag: answer from the cached KV of the retrieved chunks."""

from llama_index.llms.samkv.base import SamKVLLM
from llama_index.llms.samkv.ingestion import SamKVIngestion
from llama_index.llms.samkv.postprocessor import SamKVPostprocessor
from llama_index.llms.samkv.vector_store import SamKVVectorStore

__all__ = ["SamKVIngestion", "SamKVLLM", "SamKVPostprocessor", "SamKVVectorStore"]
