"""LangChain integration of samkv_rag: answer from the cached KV of the retrieved chunks."""

from langchain_samkv.chat_models import ChatSamKV
from langchain_samkv.rerankers import SamKVReranker
from langchain_samkv.retrievers import SamKVRetriever
from langchain_samkv.vectorstores import SamKVVectorStore

__all__ = ["ChatSamKV", "SamKVReranker", "SamKVRetriever", "SamKVVectorStore"]
