# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Updates and deletions
#
# A Chroma collection in LangChain whose documents change. You will see a filter, a changed text and a deletion, and how
# the KV follows. There are only ten documents, so it runs in seconds; it works the same with two thousand.
#
# You need a clone of the repository and `pip install -e ".[gguf]" -e integrations/langchain -e "apps[demo,evaluate]"`.

# %%
import tempfile
from pathlib import Path

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_apps.demo.langchain_pipeline import MiniLM
from samkv_apps.models import language_model
from samkv_rag import EngineConfig
from samkv_rag.prefill import Scout

temporary = tempfile.TemporaryDirectory()  # in your own project, use a permanent folder
folder = Path(temporary.name)

# %% [markdown]
# ## The stores
#
# Chroma stores texts and vectors, the folder `kv` stores the KV. `kv_dtype="int8"` halves its size on disk. The texts
# here are short, so two initial tokens per chunk are always retained instead of four, and a quarter of all tokens
# instead of 15%.

# %%
model = language_model(say=print)  # any hub id works: "Qwen/Qwen2.5-1.5B-Instruct"
llm = ChatSamKV(
    model=model,
    store=folder / "kv",
    config=EngineConfig(kv_dtype="int8"),
    method=Scout(sequence_ratio=0.25, initial_tokens=2),
    max_tokens=24,
)
quiet = chromadb.config.Settings(anonymized_telemetry=False)
client = chromadb.PersistentClient(str(folder / "chroma"), settings=quiet)
chroma = Chroma("museum", MiniLM(), client=client)
store = SamKVVectorStore(chroma, llm)

# %% [markdown]
# ## Ingestion
#
# The cards of a museum that does not exist. Batches may have any size. If a later batch is interrupted, what was added
# before stays and is not computed again.

# %%
gifts = {
    "silver violin": ("Ada Thrale", 1911, "tower"),
    "silver telescope": ("Ivo Carrow", 1948, "library"),
    "silver lantern": ("Greta Munro", 1932, "cellar"),
    "brass violin": ("Leif Holm", 1975, "kitchen"),
    "brass telescope": ("Nora Keld", 1901, "map room"),
    "brass lantern": ("Odo Farr", 1966, "west hall"),
    "oak violin": ("Petra Wick", 1983, "chapel"),
    "oak telescope": ("Silas Lorne", 1920, "boathouse"),
    "tin whistle": ("Vera Dunmore", 1957, "long gallery"),
    "oak whistle": ("Zeno Rusk", 1889, "tower"),
}


def card(name: str, giver: str, year: int, room: str) -> Document:
    text = f"{name.capitalize()}. The {name} is a gift of {giver}, from {year}. The {name} is kept in the {room}."
    return Document(text, id=name.replace(" ", "-"), metadata={"thing": name.split()[1]})


def stored() -> str:
    files = list((folder / "kv").rglob("*.safetensors"))
    num_mb = sum(file.stat().st_size for file in files) / 1e6
    return f"{len(llm.engine.sources())} documents, {len(files)} chunk files, {num_mb:.1f} MB of KV"


cards = {name: card(name, *gift) for name, gift in gifts.items()}
store.add_documents(list(cards.values()))
print(cards["silver violin"].page_content)
print(stored())

# %% [markdown]
# ## A question
#
# Filters are Chroma's own.

# %%
prompt = ChatPromptTemplate.from_template(
    "Use these passages to answer.\n\n{context}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)


def ask(question: str, **search: object) -> None:
    found = store.similarity_search(question, k=4, **search)
    context = "\n".join(document.page_content for document in found)
    answer = (prompt | llm).invoke({"context": context, "question": question})
    print(answer.text, f"({answer.response_metadata['metrics']['chunks_hit']} cards from the KV store)")


ask("Where is the silver violin kept?", filter={"thing": "violin"})

# %% [markdown]
# ## A text changes
#
# A document added under an existing id replaces the old one, with its vector and its KV.

# %%
old, new = cards["silver violin"], card("silver violin", "Bosun Tarn", 2003, "attic")
store.add_documents([new])

print("KV of the old text:", llm.engine.has_chunk(old.page_content))
print("KV of the new text:", llm.engine.has_chunk(new.page_content))
ask("Where is the silver violin kept?", filter={"thing": "violin"})

# %% [markdown]
# ## Documents are deleted
#
# Deleting the whistles also deletes their KV.

# %%
print(stored())
store.delete([document.id for document in cards.values() if document.metadata["thing"] == "whistle"])
print(stored())

# %% [markdown]
# Documents can also be deleted directly in Chroma, without the wrapper. Answers stay right, because documents that are
# not found are not read. Their KV stays until `prune`.

# %%
chroma.delete([document.id for document in cards.values() if document.metadata["thing"] == "lantern"])
print(stored())
print(f"{store.prune()} chunks pruned")
print(stored())

# %% [markdown]
# ## What is left
#
# The KV store is a folder with one file per chunk and `catalog.sqlite`. On the command line,
# `samkv store stat --store kv` shows its figures, and `samkv store verify --store kv` reads every byte.

# %%
assert not llm.engine.has_chunk(cards["oak whistle"].page_content)
llm.engine.close()
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [Where the KV is kept](../docs/stores.md): budgets, tiers, S3 and Redis
# - [Operating a store](../docs/operating.md): checking, pruning by age, export, tenants
# - [Memory](../docs/method.md#memory): how much memory an answer takes while it is decoded
# - [LangChain](02_langchain_quickstart.ipynb) and [LlamaIndex](01_llamaindex_quickstart.ipynb): the quickstarts
