# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # What was read
#
# Only a part of the retrieved text is kept when an answer is decoded, 15% by default. You will see which part, as a
# picture and as figures: for a question and its answer, with another `sequence_ratio`, for a question that the
# documents do not answer, from LlamaIndex and from LangChain.
#
# It needs a clone of the repository and `pip install -e . -e integrations/llama_index -e integrations/langchain -e
# ".[demo]"`. It runs in about a minute on two cores.

# %%
import json
import re
import tempfile
from pathlib import Path

from IPython.display import Image
from llama_index.core.llms import ChatMessage
from llama_index.llms.samkv import SamKVLLM

from langchain_samkv import ChatSamKV
from samkv_rag import Explanation, SamKVEngine
from samkv_apps import models
from samkv_apps.demo import corpus
from samkv_rag.explanation import ExplainedChunk

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## An answer, and its explanation
#
# Eight sections of the handbook of an invented lighthouse stand in every prompt here. In a pipeline they would come
# from a retriever.

# %%
# Any hub id works in place of the model, SmolLM2-135M-Instruct.
engine = SamKVEngine.from_pretrained(models.language_model(say=print), store=folder / "kv")
sections = corpus.sections()[19:27]
sources = {section.text: section.file for section in sections}
engine.add_chunks(sources)


def prompt(question: str) -> str:
    return "\n\n".join([*sources, question])


def ask(question: str, **options: object):
    messages = [{"role": "user", "content": prompt(question)}]
    return engine.generate(messages, max_new_tokens=32, **options)


question = "What are the names of the two diesel generators at Skerrow?"
result = ask(question)
print(result.text)

# %% [markdown]
# Nothing of what follows is worked out until `explain()` is called. The names of the sources are optional.

# %%
explanation = result.explain().with_sources(sources)
explanation

# %% [markdown]
# Marked text was kept: its KV is what the answer was decoded from. The stronger the mark, the more attention the block
# got while the question ran over the cached KV. The first four tokens of every chunk are kept unasked. What is dropped
# was in view of the question, and is not in view of the answer.

# %% [markdown]
# ## Which chunk fed the answer?
#
# A chunk's blocks carry the scores that the selection went by. They can be compared within one answer, not between
# answers.


# %%
def best_score(chunk: ExplainedChunk) -> float:
    return max((block.score for block in chunk.blocks if block.score is not None), default=0.0)


chunks = sorted(explanation.chunks, key=best_score, reverse=True)
for chunk in chunks:
    print(f"{chunk.source:<30}{chunk.num_kept:4} of {chunk.num_tokens} tokens kept, best block {best_score(chunk):.4f}")

assert chunks[0].source == "27-the-generators.md"

# %% [markdown]
# And its best blocks, with their text.

# %%
blocks = [block for block in chunks[0].blocks if block.score is not None]
for block in sorted(blocks, key=lambda block: block.score, reverse=True)[:5]:
    print(f"{block.score:.4f}  {chunks[0].text[block.start_char : block.stop_char]!r}")

# %% [markdown]
# ## With more, and with less
#
# `sequence_ratio` can be given with every call. Here is what it keeps of the section on the generators.


# %%
def kept_text(chunk: ExplainedChunk) -> str:
    return " … ".join(" ".join(chunk.text[span.start_char : span.stop_char].split()) for span in chunk.kept)


for ratio in (0.05, 0.15, 0.3):
    answered = ask(question, sequence_ratio=ratio)
    generators = answered.explain().chunks[-1]
    print(f"sequence_ratio={ratio}: {answered.text}")
    print(f"    {generators.num_kept} of {generators.num_tokens} tokens: {kept_text(generators)}\n")

# %% [markdown]
# What names the generators is kept each time. Keeping more does not always help: it can also distract a model this
# small.
#
# With `sequence_ratio=1`, and with full prefill, every token is kept, and no block has a score: nothing was selected.

# %% [markdown]
# ## A question that the documents do not answer
#
# The selection always keeps its share: the best of what there is, also where nothing is good. And a model this small
# always answers.

# %%
unanswerable = "What is the name of the baker in Portnessan?"
result = ask(unanswerable)
made_up = result.explain().with_sources(sources)
print(result.text)
for chunk in sorted(made_up.chunks, key=best_score, reverse=True)[:3]:
    print(f"    {chunk.source:<30}{chunk.num_kept:4} of {chunk.num_tokens} tokens kept")

# %% [markdown]
# Whether an answer stands in what was kept is easily asked. Its names and numbers should; those that do not were made
# up, or put together from pieces.


# %%
def not_read(explanation: Explanation) -> list[str]:
    """Names and numbers of the answer that no kept text holds."""
    read = " ".join(kept_text(chunk) for chunk in explanation.chunks)
    words = re.findall(r"\b(?:[A-Z]\w+|\d+)", explanation.answer)
    return [word for word in words[1:] if word not in read]


print("generators:", not_read(explanation))
print("baker:     ", not_read(made_up))

# %% [markdown]
# An empty list proves nothing: words can be read and put together wrongly. The picture says what an answer was read
# from, not that it is true.

# %% [markdown]
# ## Files
#
# A page needs nothing else: no script, no font, no network. JSON comes back as the same explanation. All of them hold
# the chunks' texts: treat them as you treat the documents.

# %%
(folder / "answer.html").write_text(explanation.to_html(), encoding="utf-8")
(folder / "answer.json").write_text(json.dumps(explanation.to_dict()), encoding="utf-8")
for file in sorted(folder.glob("answer.*")):
    print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")

assert Explanation.from_dict(json.loads((folder / "answer.json").read_text(encoding="utf-8"))) == explanation

# %%
Image(explanation.to_png(folder / "answer.png"))

# %% [markdown]
# ## From LlamaIndex
#
# `llm.last_explanation` is always there; with `explain=True`, for the LLM or for one call, a response carries its own.

# %%
llm = SamKVLLM.from_engine(engine, max_tokens=32, explain=True)
response = llm.chat([ChatMessage(prompt(question))])
from_llama_index = Explanation.from_dict(response.raw["explanation"]).with_sources(sources)

assert from_llama_index == llm.last_explanation.with_sources(sources) == explanation

# %% [markdown]
# ## From LangChain

# %%
message = ChatSamKV(engine=engine, max_tokens=32).invoke(prompt(question), explain=True)
from_langchain = Explanation.from_dict(message.response_metadata["explanation"]).with_sources(sources)

assert from_langchain == explanation

# %%
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - `samkv ask "QUESTION" FOLDER --explain answer.html` does the same for a folder of files
# - [LlamaIndex](01_llamaindex_quickstart.ipynb) and [LangChain](02_langchain_quickstart.ipynb): the whole pipelines
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): how much has to be kept of yours
# - [Ablation](05_ablation.ipynb): what selects worse, and by how much
# - [The method](../docs/method.md): how blocks are scored
