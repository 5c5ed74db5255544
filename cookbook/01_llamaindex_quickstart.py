# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # LlamaIndex quickstart
#
# An ordinary LlamaIndex pipeline that answers from cached KV. You will see documents ingested once, one question
# answered by full prefill and from the cache, a streamed answer, a turn of a chat engine, and what an answer was read
# from.
#
# It needs a clone of the repository and `pip install -e . -e integrations/llama_index -e ".[demo]"`. No GPU and no
# account: the model is SmolLM2-135M-Instruct on the CPU. It runs in a minute or two on two cores.

# %%
import tempfile
from pathlib import Path

from llama_index.core import Document, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LongContextReorder
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.llms.samkv import SamKVIngestion, SamKVLLM, SamKVPostprocessor

from samkv_apps import models
from samkv_apps.demo import corpus
from samkv_apps.models import embedding_model

temporary = tempfile.TemporaryDirectory()  # in your own project a folder that stays
folder = Path(temporary.name)

# %% [markdown]
# ## The model
#
# `SamKVLLM` is a LlamaIndex LLM. `store` is where the KV of chunks is kept.

# %%
model = str(models.language_model(say=print))  # any hub id works: "Qwen/Qwen2.5-1.5B-Instruct"
llm = SamKVLLM(model, store=str(folder / "kv"), max_tokens=40)

Settings.llm, Settings.tokenizer = llm, llm.tokenizer
Settings.embed_model = HuggingFaceEmbedding(str(embedding_model()))  # all-MiniLM-L6-v2

# %% [markdown]
# ## Documents
#
# Forty sections of the handbook of a lighthouse that does not exist, so that no model knows the answers beforehand.
# `SamKVIngestion` stands behind the splitter and computes the KV of every chunk, once.

# %%
documents = [Document(text=section.text, id_=section.file) for section in corpus.sections()[19:59]]
splitter = SentenceSplitter(chunk_size=512)
ingestion = SamKVIngestion(llm)

index = VectorStoreIndex.from_documents(documents, transformations=[splitter, ingestion])
print(f"{len(index.docstore.docs)} chunks, {llm.engine.store.nbytes() / 1e6:.0f} MB of KV on disk")

# %% [markdown]
# Whatever is stored already is not computed again, in this process or in the next.

# %%
report = ingestion.ensure(index.docstore.docs.values())
print(f"{report.num_added} computed, {report.num_reused} reused")

# %% [markdown]
# ## A query engine
#
# `SamKVPostprocessor` stands last: it changes no node, but tells the engine which KV will be needed. The template puts
# the question behind the passages, and `LongContextReorder` the best passages to the two ends. A large model manages
# with LlamaIndex's own order; one of 135 million parameters does not, whichever way it reads.

# %%
template = PromptTemplate(
    "Use these passages to answer.\n\n{context_str}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {query_str}"
)
options = {
    "similarity_top_k": 8,
    "text_qa_template": template,
    "node_postprocessors": [LongContextReorder(), SamKVPostprocessor(llm)],
}
query_engine = index.as_query_engine(**options)

question = "What are the names of the two diesel generators at Skerrow?"
answer = query_engine.query(question)
print(answer)

# %%
metrics = llm.last_metrics
print(f"{metrics.chunks_hit} chunks read from the store, {metrics.sequence_ratio:.1%} of their tokens kept")

# %% [markdown]
# ## The same with full prefill
#
# The same model, documents, passages and prompt, every token read anew: what a pipeline without a cache does. Both
# engines have answered a question before the one that is timed.

# %%
full = SamKVLLM(model, config={"method": "full_prefill"}, max_tokens=40)
full_engine = index.as_query_engine(llm=full, **options)
for engine in (query_engine, full_engine):
    engine.query("What is the Churn?")

answers = {"full prefill": full_engine.query(question), "cached KV": query_engine.query(question)}
figures = {"full prefill": full.last_metrics, "cached KV": llm.last_metrics}
for name, m in figures.items():
    print(f"{name:<13}{m.ttft_s:5.2f} s to the first token, {m.kv_bytes_resident / 1e6:4.1f} MB of KV  {answers[name]}")

# %%
ratio = figures["cached KV"].ttft_s / figures["full prefill"].ttft_s
print(f"time to the first token: {ratio:.2f} of full prefill's")

# %% [markdown]
# The prompt is short, 1,900 tokens. The longer it is, the smaller the ratio: see the
# [method's figures](../docs/method.md).

# %% [markdown]
# ## Streaming

# %%
stream = index.as_query_engine(streaming=True, **options).query("Who is the engineer at Skerrow?")
for piece in stream.response_gen:
    print(piece, end="|")

# %% [markdown]
# ## A chat engine
#
# Here the passages stand in the system message, before the history. They are recognised by their text, so the place
# does not matter.

# %%
chat_engine = index.as_chat_engine(
    chat_mode="context",
    similarity_top_k=8,
    node_postprocessors=options["node_postprocessors"],
)
for turn in ("What is the name of the station dog at Skerrow?", question):
    print(chat_engine.chat(turn), f"({llm.last_metrics.chunks_hit} chunks from the store)")

# %% [markdown]
# ## What was read
#
# For any answer, the text that it was decoded from. Nothing is worked out until asked for.

# %%
query_engine.query(question)
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

# %%
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the picture above, explained, and what changes it
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): your folder, your questions
# - [Many documents](07_many_documents.ipynb): a vector store of 2,000 chunks, updates and deletions
# - [All options](../integrations/llama_index/README.md) of the LLM, the ingestion and the postprocessor
# - The same [with LangChain](02_langchain_quickstart.ipynb)
