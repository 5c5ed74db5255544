# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # What was read
#
# Only part of the retrieved text is retained when an answer is decoded, 15% by default. You will see which part, as a
# picture and as figures: for a question and its answer, with another `sequence_ratio`, and for a question that the
# documents do not answer.
#
# You need a clone of the repository and `pip install -e ".[gguf]" -e "apps[demo,evaluate]"`.

# %%
import json
import tempfile
from pathlib import Path

from samkv_apps.demo import corpus
from samkv_apps.models import language_model
from samkv_rag import Explanation, SamKVEngine
from samkv_rag.explanation import ExplainedChunk
from samkv_rag.prefill import Scout

temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## An answer, and its explanation
#
# Every prompt here contains six chunks from the handbook of an invented lighthouse. In a pipeline they would come from
# a retriever.

# %%
# Any hub id works in place of the model, SmolLM2-135M-Instruct.
engine = SamKVEngine.from_pretrained(language_model(say=print), store=folder / "kv")
sources = {section.text: section.file for section in corpus.sections()[21:27]}
engine.add_chunks(sources)


def ask(question: str, **options: object):
    prompt = "\n\n".join([*sources, question])
    return engine.generate([{"role": "user", "content": prompt}], max_new_tokens=24, **options)


question = "What are the names of the two diesel generators at Skerrow?"
result = ask(question)
print(result.text)

# %% [markdown]
# The names of the sources are optional.

# %%
explanation = result.explain().with_sources(sources)
explanation

# %% [markdown]
# Marked text was retained: the answer was decoded from its KV. The stronger the mark, the more attention the question
# paid to the block. The first four tokens of every chunk are always retained. The question attended to the dropped text
# too, but the answer does not.

# %% [markdown]
# ## Which chunk fed the answer?
#
# A chunk's blocks carry the scores that the selection used. Scores can be compared within one answer, but not between
# answers.


# %%
def best_score(chunk: ExplainedChunk) -> float:
    return max((block.score for block in chunk.blocks if block.score is not None), default=0.0)


chunks = sorted(explanation.chunks, key=best_score, reverse=True)
for chunk in chunks:
    print(
        f"{chunk.source:<30}{chunk.num_retained:4} of {chunk.num_tokens} tokens retained, "
        f"best block {best_score(chunk):.4f}"
    )

# %% [markdown]
# This is the text of its best blocks.

# %%
blocks = [block for block in chunks[0].blocks if block.score is not None]
for block in sorted(blocks, key=lambda block: block.score, reverse=True)[:5]:
    print(f"{block.score:.4f}  {chunks[0].text[block.start_char : block.stop_char]!r}")

# %% [markdown]
# ## With a larger budget
#
# Every call takes a method. This is what twice the budget retains of the chunk about the generators.


# %%
def retained_text(chunk: ExplainedChunk) -> str:
    return " … ".join(" ".join(chunk.text[run.start_char : run.stop_char].split()) for run in chunk.retained)


more = ask(question, method=Scout(sequence_ratio=0.3))
for answered in (result, more):
    generators = answered.explain().chunks[-1]
    print(f"{answered.metrics.sequence_ratio:.2f}: {answered.text}")
    print(f"    {generators.num_retained} of {generators.num_tokens} tokens: {retained_text(generators)}\n")

# %% [markdown]
# Retaining more does not always help: it can also distract a small model. With `Scout(sequence_ratio=1.0)` and with
# full prefill every token is retained. No block has a score then, because nothing was selected.

# %% [markdown]
# ## A question that the documents do not answer
#
# The selection always retains its share, even if no chunk fits the question, and the model answers anyway.

# %%
made_up = ask("What is the name of the baker in Portnessan?")
print(made_up.text)
for chunk in sorted(made_up.explain().with_sources(sources).chunks, key=best_score, reverse=True)[:3]:
    print(f"    {chunk.source:<30}{chunk.num_retained:4} of {chunk.num_tokens} tokens retained")

# %% [markdown]
# The picture shows what an answer was read from. It does not show that the answer is true.

# %% [markdown]
# ## Files
#
# The page needs no script, no font and no network. The JSON can be read back as the same explanation. Both contain the
# chunks' texts, so protect them like the documents.

# %%
(folder / "answer.html").write_text(explanation.to_html(), encoding="utf-8")
(folder / "answer.json").write_text(json.dumps(explanation.to_dict()), encoding="utf-8")

assert Explanation.from_dict(json.loads((folder / "answer.json").read_text(encoding="utf-8"))) == explanation

# %% [markdown]
# ## From LlamaIndex and LangChain
#
# In LlamaIndex, `llm.last_explanation` is always available. With `explain=True`, responses of `SamKVLLM` carry
# `raw["explanation"]`, and messages of `ChatSamKV` carry `response_metadata["explanation"]`. Both are for
# `Explanation.from_dict`.

# %%
engine.close()
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - `samkv ask "QUESTION" FOLDER --store STORE --model demo --explain answer.html` does the same for a folder of files
# - [LlamaIndex](01_llamaindex_quickstart.ipynb) and [LangChain](02_langchain_quickstart.ipynb): the whole pipelines
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): how much of yours must be retained
# - [The method](../docs/method.md): how blocks are scored, and which alternatives select worse
