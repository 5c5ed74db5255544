# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # LangChain quickstart
#
# An ordinary LangChain chain that answers from cached KV. It adds documents to a vector store and answers a question
# from the cache and by full prefill. An async stream, a picture of what was read, and a retriever without a vector
# store follow.
#
# You need a clone of the repository and `pip install -e ".[gguf]" -e integrations/langchain -e "apps[demo,evaluate]"`.
# You need no GPU and no account: the model is SmolLM2-135M-Instruct on the CPU.

# %%
import tempfile
from operator import itemgetter
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_samkv import ChatSamKV, SamKVRetriever, SamKVVectorStore
from samkv_apps.demo import corpus
from samkv_apps.demo.langchain_pipeline import MiniLM
from samkv_apps.models import language_model
from samkv_rag import Explanation
from samkv_rag.prefill import Scout

temporary = tempfile.TemporaryDirectory()  # in your own project, use a permanent folder
folder = Path(temporary.name)

# %% [markdown]
# ## The model and the documents
#
# `ChatSamKV` is a chat model. `SamKVVectorStore` wraps any vector store: adding documents computes their KV, deleting
# documents removes it. The six documents are from the handbook of a lighthouse that does not exist, so no model knows
# the answers.

# %%
model = language_model(say=print)  # any hub id works: "Qwen/Qwen2.5-1.5B-Instruct"
llm = ChatSamKV(model=model, store=folder / "kv", max_tokens=24)

store = SamKVVectorStore(InMemoryVectorStore(MiniLM()), llm)  # or Chroma, FAISS, PGVector ...
documents = [
    Document(section.text, id=section.file, metadata={"file": section.file}) for section in corpus.sections()[24:30]
]
store.add_documents(documents)
print(f"{len(documents)} documents, {len(llm.engine.sources())} of them in the KV store")

# %% [markdown]
# ## A chain
#
# The chain does not handle KV: chunks are recognised in the final prompt by their text, in any order.


# %%
def format_docs(found: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in found)


prompt = ChatPromptTemplate.from_template(
    "Use these passages to answer.\n\n{context}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)
retriever = store.as_retriever(search_kwargs={"k": 4})
inputs = {"context": itemgetter("question") | retriever | format_docs, "question": itemgetter("question")}
chain = inputs | prompt | llm

asked = {"question": "What are the names of the two diesel generators at Skerrow?"}
answer = chain.invoke(asked)
print(answer.text)

# %% [markdown]
# The answer carries its metrics. `cache_read` counts the prompt's tokens whose KV was read instead of computed.

# %%
metrics = answer.response_metadata["metrics"]
print(f"{metrics['chunks_hit']} chunks read from the store, {metrics['sequence_ratio']:.1%} of their tokens retained")
print(answer.usage_metadata)

# %% [markdown]
# ## The same with full prefill
#
# The same chain and prompt, but every token is computed, as in a chain without a cache. Bind `method` like any option
# of a chat model.

# %%
full_answer = (inputs | prompt | llm.bind(method="full_prefill")).invoke(asked)
for name, message in {"cached KV": answer, "full prefill": full_answer}.items():
    m = message.response_metadata["metrics"]
    print(f"{name:<13}{m['kv_bytes_resident'] / 1e6:4.1f} MB of KV  {message.text}")

# %% [markdown]
# This prompt is short. For the time saved on longer prompts, see the [method's figures](../docs/method.md).

# %% [markdown]
# ## An async stream
#
# The event loop is not blocked. Closing the stream stops decoding.

# %%
async for piece in chain.astream({"question": "Who is the engineer at Skerrow?"}):
    print(piece.text, end="|")

# %% [markdown]
# ## What was read
#
# With `explain=True` an answer carries what it was decoded from, as plain JSON. `Explanation` draws it. This call
# retains twice as many tokens.

# %%
explaining = inputs | prompt | llm.bind(explain=True, method=Scout(sequence_ratio=0.3))
answer = explaining.invoke(asked)
sources = {document.page_content: document.metadata["file"] for document in documents}
Explanation.from_dict(answer.response_metadata["explanation"]).with_sources(sources)

# %% [markdown]
# ## Documents come and go
#
# Additions, deletions and `langchain_core.indexing.index()` work as on the wrapped store.

# %%
generators = next(document for document in documents if "Flora and Mabel" in document.page_content)
store.delete([generators.id])
print("KV of the deleted document is stored:", llm.engine.has_chunk(generators.page_content))

# %% [markdown]
# ## Any other retriever
#
# `SamKVRetriever` wraps any retriever. It announces what it finds to the engine, which computes missing KV once and
# stores it.


# %%
class Latest(BaseRetriever):
    """Always returns the newest notice."""

    def _get_relevant_documents(self, query: str, **options: object) -> list[Document]:
        return [Document("Notice of 3 May. The landing at North Geo is closed until the new rails are laid, in June.")]


notices = SamKVRetriever(Latest(), llm)
print([document.page_content[:16] for document in notices.invoke("What is closed?")])

# %% [markdown]
# ## What was changed
#
# | an ordinary chain | this one |
# | --- | --- |
# | `llm = ChatHuggingFace(…)` | `llm = ChatSamKV(model=…, store=…)` |
# | `store = Chroma(…)` | `store = SamKVVectorStore(Chroma(…), llm)` |
#
# Retriever, prompt, parser, agents and everything else are LangChain's own.

# %%
llm.engine.close()
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the picture above, explained, and what changes it
# - [Updates and deletions](05_updates_and_deletions.ipynb): a Chroma collection that changes
# - [All options, structured answers, tools and agents](../integrations/langchain/README.md)
# - The same [with LlamaIndex](01_llamaindex_quickstart.ipynb)
