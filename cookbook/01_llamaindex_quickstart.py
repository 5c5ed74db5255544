# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # LlamaIndex quickstart
#
# An ordinary LlamaIndex pipeline that answers from cached KV. It ingests documents once and answers a question from the
# cache and by full prefill. A stream, a picture of what was read, and a deletion follow.
#
# You need a clone of the repository and
# `pip install -e ".[gguf]" -e integrations/llama_index -e "apps[demo,evaluate]"`. You need no GPU and no account: the
# model is SmolLM2-135M-Instruct on the CPU.

# %%
import tempfile
from pathlib import Path

from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from samkv_apps.demo import corpus
from samkv_apps.models import embedding_model, language_model

temporary = tempfile.TemporaryDirectory()  # in your own project, use a permanent folder
folder = Path(temporary.name)

# %% [markdown]
# ## The model
#
# `SamKVLLM` is a LlamaIndex LLM. `store` is where the KV of chunks is kept.

# %%
model = str(language_model(say=print))  # any hub id works: "Qwen/Qwen2.5-1.5B-Instruct"
llm = SamKVLLM(model, store=str(folder / "kv"), max_tokens=24)

Settings.llm, Settings.tokenizer = llm, llm.tokenizer
Settings.embed_model = HuggingFaceEmbedding(str(embedding_model()))  # all-MiniLM-L6-v2

# %% [markdown]
# ## Documents
#
# Six documents from the handbook of a lighthouse that does not exist, so no model knows the answers. `SamKVIngestion`
# comes after the splitter and computes the KV of every chunk once.

# %%
documents = [Document(text=section.text, id_=section.file) for section in corpus.sections()[24:30]]
splitter = SentenceSplitter(chunk_size=512)
ingestion = SamKVIngestion(llm)

index = VectorStoreIndex.from_documents(documents, transformations=[splitter, ingestion])
print(f"{len(index.docstore.docs)} chunks in the index, {len(llm.engine.sources())} of them in the KV store")

# %% [markdown]
# A stored chunk is not computed again, in this process or the next.

# %%
report = ingestion.ingest(index.docstore.docs.values())
print(f"{report.num_added} computed, {report.num_reused} reused")

# %% [markdown]
# ## A query engine
#
# `SamKVPostprocessor` comes last. It changes no node; it tells the engine which KV will be needed. Template and order
# are LlamaIndex's own.

# %%
options = {"similarity_top_k": 4, "node_postprocessors": [SamKVPostprocessor(llm)]}
query_engine = index.as_query_engine(**options)

question = "What are the names of the two diesel generators at Skerrow?"
answer = query_engine.query(question)
metrics = llm.last_metrics
print(answer)
print(f"{metrics.chunks_hit} chunks read from the store, {metrics.sequence_ratio:.1%} of their tokens retained")

# %% [markdown]
# ## The same with full prefill
#
# The same engine, chunks and prompt, but every token is computed, as in a pipeline without a cache.

# %%
full = SamKVLLM.from_engine(llm.engine, method="full_prefill", max_tokens=24)
full_answer = index.as_query_engine(llm=full, **options).query(question)
for name, m, text in (("cached KV", metrics, answer), ("full prefill", full.last_metrics, full_answer)):
    print(f"{name:<13}{m.tokens_reused:>5} tokens reused, {m.kv_bytes_resident / 1e6:4.1f} MB of KV  {text}")

# %% [markdown]
# This prompt is short. For the time saved on longer prompts, see the [method's figures](../docs/method.md).

# %% [markdown]
# ## Streaming

# %%
stream = index.as_query_engine(streaming=True, **options).query("Who is the engineer at Skerrow?")
for piece in stream.response_gen:
    print(piece, end="|")

# %% [markdown]
# ## What was read
#
# The text that the last answer was decoded from. It is computed only when you ask for it.

# %%
sources = {document.text: document.doc_id for document in documents}
llm.last_explanation.with_sources(sources)

# %% [markdown]
# ## What was changed
#
# | an ordinary pipeline | this one |
# | --- | --- |
# | `llm = HuggingFaceLLM(model_name=…)` | `llm = SamKVLLM(…, store=…)` |
# | `transformations=[SentenceSplitter(…)]` | `transformations=[SentenceSplitter(…), SamKVIngestion(llm)]` |
# | `node_postprocessors=[…]` | `node_postprocessors=[…, SamKVPostprocessor(llm)]` |
# | `Settings.tokenizer = …` of the model | `Settings.tokenizer = llm.tokenizer` |
#
# Index, retriever, templates, response modes and chat engines are LlamaIndex's own.

# %% [markdown]
# ## KV that is deleted with its document
#
# LlamaIndex does not tell its transformations about deletions. Instead of `SamKVIngestion`, use `SamKVVectorStore`. It
# wraps the vector store, computes the KV of added nodes, and removes it with the document.

# %%
from llama_index.llms.samkv import SamKVVectorStore

context = StorageContext.from_defaults(vector_store=SamKVVectorStore(SimpleVectorStore(stores_text=True), llm))
watched = VectorStoreIndex([], storage_context=context)
visit = Document(text="The inspector Ansa Rook visited the station on 3 May and found it dry.", id_="visit.md")
watched.insert(visit)
print("stored:", llm.engine.has_chunk(visit.text))
watched.delete_ref_doc("visit.md")
print("stored:", llm.engine.has_chunk(visit.text))

# %%
llm.engine.close()
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the picture above, explained, and what changes it
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): your folder, your questions
# - [All options](../integrations/llama_index/README.md) of the LLM, the ingestion and the postprocessor
# - The same [with LangChain](02_langchain_quickstart.ipynb)
