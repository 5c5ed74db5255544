# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Many documents
#
# Chroma with 2,000 chunks, through LangChain. You will see them ingested in batches, questions with and without a
# filter, a text changed, documents deleted, and that their KV goes with them: the store's figures before and after.
#
# It needs a clone of the repository and `pip install -e . -e integrations/langchain -e ".[demo]"`, and 1.5 GB of disk
# while it runs. It takes a few minutes on two cores, nearly all of them for ingestion.

# %%
import itertools
import random
import tempfile
import time
from pathlib import Path

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import ChatPromptTemplate
from sentence_transformers import SentenceTransformer

from langchain_samkv import ChatSamKV, SamKVVectorStore
from samkv_rag import SamKVEngine
from samkv_apps.demo import models
from samkv_apps.models import embedding_model

temporary = tempfile.TemporaryDirectory()  # in your own project a folder that stays
folder = Path(temporary.name)

# %% [markdown]
# ## A catalogue
#
# The 2,000 cards of a museum that does not exist: every one of 50 materials and colours with every one of 40 things.
# So each card has 88 near neighbours, and a retriever and a model have to tell them apart.

# %%
kinds = """amber ash beechwood black blue brass bronze canvas cedar clay cobalt copper coral cork crimson ebony elm
enamel flint gilded glass granite green grey horn iron ivory jet lacquered leather linen mahogany marble oak olive
orange pearl pewter pine plum porcelain scarlet silver slate steel tin velvet violet walnut willow"""
things = """almanac anchor astrolabe barometer basket bell bookcase bottle bowl bucket candlestick chest clock compass
cup drum flag flute globe hammer harpoon hat hourglass inkwell jug kettle key lantern telescope mirror oar paintbox
plough quill saddle sextant spoon trunk violin whistle"""
first_names = """Ada Alban Berta Casper Dora Edmund Elka Fergus Greta Hamish Ida Ivo Jonas Karla Leif Magda Nora Odo
Petra Quentin Rhona Silas Tilda Ulric Vera Wanda Xaver Yrsa Zeno Agnes"""
last_names = """Abbott Brandt Carrow Dunmore Eskdale Farr Garrick Holm Inglis Jarvie Keld Lorne Munro Norrie Oxley
Penrose Quill Rusk Sorley Thrale Ure Voss Wick Yule Zander Ardley Birk Cope Dray Elphin"""
rooms = ["map room", "long gallery", "boathouse", "tower", "cellar", "west hall", "kitchen", "library", "chapel"]

chance = random.Random(7)


def card(kind: str, thing: str) -> Document:
    giver = f"{chance.choice(first_names.split())} {chance.choice(last_names.split())}"
    room, year = chance.choice(rooms), chance.randint(1880, 1990)
    name = f"{kind} {thing}"
    text = f"{name.capitalize()}. The {name} is a gift of {giver}, from {year}. The {name} is kept in the {room}."
    return Document(text, id=f"{kind}-{thing}", metadata={"thing": thing, "room": room})


cards = {f"{kind} {thing}": card(kind, thing) for kind, thing in itertools.product(kinds.split(), things.split())}
print(f"{len(cards)} cards, for example\n{cards['silver violin'].page_content}")

# %% [markdown]
# ## The stores
#
# Chroma holds texts and vectors, `kv` the KV. `kv_dtype="int8"` halves the bytes that it takes. The cards are short: of
# each, the first two tokens are kept unasked instead of four, and a quarter of all instead of 15%, or there would be
# nothing left to choose.


# %%
class MiniLM(Embeddings):
    """all-MiniLM-L6-v2, many texts at a time."""

    model = SentenceTransformer(str(embedding_model()))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.model.encode(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


model = models.language_model(say=print)  # any hub id works: "Qwen/Qwen2.5-1.5B-Instruct"
config = {"kv_dtype": "int8", "initial_tokens": 2, "sequence_ratio": 0.25}
llm = ChatSamKV(model=model, store=folder / "kv", max_tokens=24, config=config)

quiet = chromadb.config.Settings(anonymized_telemetry=False)
client = chromadb.PersistentClient(str(folder / "chroma"), settings=quiet)
chroma = Chroma("museum", MiniLM(), client=client)
store = SamKVVectorStore(chroma, llm)

# %% [markdown]
# ## Ingestion
#
# Batches may be of any size; what was added stays when a later one is interrupted, and is not computed again.


# %%
def stored() -> str:
    return f"{len(llm.engine.sources()):,} documents, {llm.engine.store.nbytes() / 1e6:,.0f} MB of KV"


documents = list(cards.values())
for start in range(0, len(documents), 400):
    batch = documents[start : start + 400]
    started = time.perf_counter()
    store.add_documents(batch)
    num_tokens = sum(llm.engine.count_tokens(document.page_content) for document in batch)
    print(f"{stored()}, {num_tokens / (time.perf_counter() - started):,.0f} tokens/s")

assert len(llm.engine.sources()) == 2000

# %% [markdown]
# ## Questions
#
# Ten cards stand in every prompt, the best last. The questions are among those that a model of 135 million parameters
# answers rightly with full prefill; other cards it confuses, however it reads them.

# %%
prompt = ChatPromptTemplate.from_template(
    "Use these passages to answer.\n\n{context}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)


def ask(question: str, chat=llm, **search: object) -> str:
    started = time.perf_counter()
    found = store.similarity_search(question, k=10, **search)
    search_s = time.perf_counter() - started
    context = "\n".join(document.page_content for document in reversed(found))
    answer = (prompt | chat).invoke({"context": context, "question": question})
    m = answer.response_metadata["metrics"]
    print(answer.text)
    print(
        f"    search {search_s:.2f} s, first token {m['ttft_s']:.2f} s, {m['method']}, {m['chunks_hit']} cards stored"
    )
    return answer.text


questions = [
    "Who gave the silver violin to the museum?",
    "Where is the silver telescope kept?",
    "Where is the silver lantern kept?",
]
for question in questions:
    ask(question)

# %% [markdown]
# The same with full prefill, every token read anew. These prompts hold 400 tokens, so few that it takes about as long;
# see the [method's figures](../docs/method.md) for longer ones.

# %%
for question in questions:
    ask(question, llm.bind(method="full_prefill"))

# %% [markdown]
# Filters are Chroma's own.

# %%
answer = ask("Where is the silver violin kept?", filter={"thing": "violin"})

# %% [markdown]
# ## A text changes
#
# Added under its old id, a document replaces the old one, its vector and its KV.

# %%
old = cards["silver violin"]
new = Document(
    "Silver violin. The silver violin is a gift of Bosun Tarn, from 2003. The silver violin is kept in the attic.",
    id=old.id,
    metadata=old.metadata,
)
store.add_documents([new])

print("KV of the old text:", llm.engine.has_chunk(old.page_content))
print("KV of the new text:", llm.engine.has_chunk(new.page_content))
answer = ask("Who gave the silver violin to the museum?")

assert not llm.engine.has_chunk(old.page_content)

# %% [markdown]
# ## Documents are deleted
#
# All whistles go, and their KV with them.

# %%
whistles = [document for document in documents if document.metadata["thing"] == "whistle"]
print(stored())
store.delete([document.id for document in whistles])
print(stored())

assert not any(llm.engine.has_chunk(document.page_content) for document in whistles)

# %% [markdown]
# Somebody deletes in Chroma itself, past the wrapper. Answers stay right, since what is not found is not read, but the
# KV is left behind until `prune`.

# %%
kettles = [document for document in documents if document.metadata["thing"] == "kettle"]
chroma.delete([document.id for document in kettles])
print(stored())
print(f"{store.prune()} chunks pruned")
print(stored())

assert not any(llm.engine.has_chunk(document.page_content) for document in kettles)

# %% [markdown]
# ## What is left
#
# The KV store is a folder: as many chunk files as documents, and an index. `samkv store stat --store kv` says the same
# on the command line, `verify` reads every byte.

# %%
files = list((folder / "kv").rglob("*.safetensors"))
print(f"{len(files):,} files of {sum(file.stat().st_size for file in files) / 1e6:,.0f} MB; {stored()}")

assert len(files) == len(llm.engine.sources()) == len(cards) - len(whistles) - len(kettles)

# %% [markdown]
# Another process opens it and computes nothing.

# %%
started = time.perf_counter()
other = SamKVEngine.from_pretrained(model, store=folder / "kv", config=llm.engine.config)
print(f"model loaded and store opened in {time.perf_counter() - started:.1f} s")
print("KV of the new text:", other.has_chunk(new.page_content))

# %%
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [Where the KV is kept](../docs/stores.md): budgets, tiers, S3 and Redis
# - [Operating a store](../docs/operating.md): checking, pruning by age, export, tenants
# - [Memory](06_memory.ipynb): what an answer holds in memory while it is decoded
# - [LangChain](02_langchain_quickstart.ipynb) and [LlamaIndex](01_llamaindex_quickstart.ipynb) from the beginning
