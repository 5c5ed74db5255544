# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # LangChain quickstart
#
# An ordinary LangChain chain that answers from cached KV. You will see documents added to a vector store, one question
# answered by full prefill and from the cache, a stream, an asynchronous call, the figures that come with an answer, a
# structured answer, and what an answer was read from.
#
# It needs a clone of the repository and `pip install -e . -e integrations/langchain -e ".[demo]"`. No GPU and no
# account: the model is SmolLM2-135M-Instruct on the CPU. It runs in a minute or two on two cores.

# %%
import tempfile
from operator import itemgetter
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_rag import Explanation
from samkv_apps import models
from samkv_apps.demo import corpus
from samkv_apps.demo.langchain_pipeline import MiniLM

temporary = tempfile.TemporaryDirectory()  # in your own project a folder that stays
folder = Path(temporary.name)

# %% [markdown]
# ## The model and the documents
#
# `ChatSamKV` is a chat model, `SamKVVectorStore` wraps any vector store: adding documents computes their KV, deleting
# them lets it go. Forty sections of the handbook of a lighthouse that does not exist are added, so that no model knows
# the answers beforehand.

# %%
model = models.language_model(say=print)  # any hub id works: "Qwen/Qwen2.5-1.5B-Instruct"
llm = ChatSamKV(model=model, store=folder / "kv", max_tokens=40)

store = SamKVVectorStore(InMemoryVectorStore(MiniLM()), llm)  # or Chroma, FAISS, PGVector ...
documents = [
    Document(section.text, id=section.file, metadata={"file": section.file}) for section in corpus.sections()[19:59]
]
store.add_documents(documents)
print(f"{len(documents)} documents, {llm.engine.store.nbytes() / 1e6:.0f} MB of KV on disk")

# %% [markdown]
# ## A chain
#
# The best passage stands last, next to the question: that helps a model of 135 million parameters, whichever way it
# reads. The chain knows nothing of KV; chunks are recognised in the final prompt by their text.


# %%
def format_docs(found: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in reversed(found))


prompt = ChatPromptTemplate.from_template(
    "Use these passages to answer.\n\n{context}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)
retriever = store.as_retriever(search_kwargs={"k": 8})
inputs = {"context": itemgetter("question") | retriever | format_docs, "question": itemgetter("question")}
chain = inputs | prompt | llm

asked = {"question": "What are the names of the two diesel generators at Skerrow?"}
answer = chain.invoke(asked)
print(answer.text)

# %% [markdown]
# What an answer cost comes with it: `cache_read` counts the prompt's tokens whose KV was read instead of computed.

# %%
metrics = answer.response_metadata["metrics"]
print(f"{metrics['chunks_hit']} chunks read from the store, {metrics['sequence_ratio']:.1%} of their tokens kept")
print(answer.usage_metadata)

# %% [markdown]
# ## The same with full prefill
#
# The same chain, passages and prompt, every token read anew: what a chain without a cache does.

# %%
full_chain = inputs | prompt | llm.bind(method="full_prefill")
full_chain.invoke({"question": "What is the Churn?"})  # not counted: the first call of each kind is slower

answers = {"full prefill": full_chain.invoke(asked), "cached KV": chain.invoke(asked)}
figures = {name: message.response_metadata["metrics"] for name, message in answers.items()}
for name, m in figures.items():
    kv_mb = m["kv_bytes_resident"] / 1e6
    print(f"{name:<13}{m['ttft_s']:5.2f} s to the first token, {kv_mb:4.1f} MB of KV  {answers[name].text}")

# %%
ratio = figures["cached KV"]["ttft_s"] / figures["full prefill"]["ttft_s"]
print(f"time to the first token: {ratio:.2f} of full prefill's")

# %% [markdown]
# The prompt is short, 1,900 tokens. The longer it is, the smaller the ratio: see the
# [method's figures](../docs/method.md).

# %% [markdown]
# ## Streams and asynchronous calls
#
# Asynchronous calls leave the event loop free; a stream that is closed decodes no further token.

# %%
for piece in chain.stream({"question": "Who is the engineer at Skerrow?"}):
    print(piece.text, end="|")

# %%
answer = await chain.ainvoke({"question": "What did the wreck survey ship use to find the hull of the Grey Heron?"})
print(answer.text)

# %% [markdown]
# Options are bound as with any chat model, and unknown ones refused.

# %%
brief = llm.bind(max_tokens=5, sequence_ratio=0.3)
print((inputs | prompt | brief).invoke(asked).text)

try:
    llm.invoke("Hello", num_beams=4)
except RuntimeError as refused:  # samkv_rag.SamKVError
    print(str(refused).split(";")[0])

# %% [markdown]
# ## A structured answer
#
# The schema is written into the prompt and the answer is checked against it. A model this small manages one field.


# %%
class Keeper(BaseModel):
    name: str


structured = llm.with_structured_output(Keeper)
structured.invoke("Edwin Marrable kept the light for 31 years. Who kept the light?")

# %% [markdown]
# ## What was read
#
# With `explain=True` an answer carries what it was decoded from, as plain JSON in `response_metadata`; `Explanation`
# draws it.

# %%
explaining = inputs | prompt | llm.bind(explain=True)
answer = explaining.invoke(asked)
sources = {document.page_content: document.metadata["file"] for document in documents}
Explanation.from_dict(answer.response_metadata["explanation"]).with_sources(sources)

# %% [markdown]
# ## Documents come and go
#
# `langchain_core.indexing.index()` works as on the wrapped store; so do additions and deletions.

# %%
generators = next(document for document in documents if "Flora and Mabel" in document.page_content)
store.delete([generators.id])
print("KV of the deleted document is there:", llm.engine.has_chunk(generators.page_content))

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
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the picture above, explained, and what changes it
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): your folder, your questions
# - [Many documents](07_many_documents.ipynb): Chroma with 2,000 chunks, updates and deletions
# - [All options, tools and agents](../integrations/langchain/README.md)
# - The same [with LlamaIndex](01_llamaindex_quickstart.ipynb)
