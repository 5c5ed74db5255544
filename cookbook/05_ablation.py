# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablation: what each part is worth
#
# Every part of the two selectors is a switch of `SamKVConfig`. This notebook turns them off one by one, for `samkv`,
# the paper's method, and for `scout`, the default, and shows what that does to the answers: a table and a plot.
#
# It needs a clone of the repository and `pip install -e ".[gguf,evaluate]"`. It runs in a few minutes on two CPU cores;
# no GPU is needed.
#
# What it can show: the model has 135 million parameters and there are five questions, so only large differences mean
# anything, and another model may order the variants otherwise. The same switches on a larger model and on HotpotQA are
# in [the method's page](../docs/method.md#the-papers-selection); `samkv evaluate --option NAME=VALUE` runs any of them
# on your own cases.

# %%
from statistics import fmean

import matplotlib.pyplot as plt
import torch

from samkv_rag import SamKVConfig, SamKVEngine
from samkv_apps import models
from samkv_apps.demo import corpus, quieten_libraries
from samkv_apps.evaluate.embedding import Embedder
from samkv_apps.evaluate.retrieval import Retriever, best_outside

quieten_libraries()

# %% [markdown]
# ## Prompts
#
# Five questions about an invented lighthouse, chosen among those that this model answers rightly with full prefill;
# for each the eight nearest of 70 sections.
#
# There are two engines on one store. The paper recomputes every layer, `scout` from a quarter of the depth on, starting
# from hidden states, and where recomputation starts is fixed for an engine. Both are opened with `method="samkv"`, so
# that the chunks are stored with the summaries that the paper's method reads; `scout` does not mind.

# %%
model = models.language_model(say=print)  # any hub id works
engine = SamKVEngine.from_pretrained(model, config=SamKVConfig(method="samkv"))
from_bottom = SamKVEngine.from_pretrained(model, store=engine.store, config=SamKVConfig(method="samkv", resume_layer=0))
sections = [section.text for section in corpus.sections()]
retriever = Retriever(sections, Embedder(torch.device("cpu")))

TEMPLATE = (
    "Use these passages to answer.\n\n{}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {}"
)


def prompt_of(question):
    passages = [sections[i] for i in best_outside(retriever.nearest(question, top_k=8))]
    engine.add_chunks(passages)
    return [{"role": "user", "content": TEMPLATE.format("\n\n".join(passages), question)}]


questions = corpus.questions(5)
prompts = [prompt_of(q.question) for q in questions]

# %% [markdown]
# ## The reference
#
# Full prefill's answers. A right answer is one that holds the expected words. With five questions that count is
# coarse, so a second figure stands beside it: the negative log-likelihood (NLL) of *full prefill's own answer*, in nats
# a token. It is lowest where a variant would have said the same.

# %%
full = [engine.generate(p, method="full_prefill", max_new_tokens=16).text.strip() for p in prompts]
for question, answer in zip(questions, full, strict=True):
    print("right" if question.is_answered_by(answer) else "wrong", "|", answer)

# %% [markdown]
# ## Variants
#
# Each is an engine and what it changes. With the dynamic share, `samkv` decides itself how much of its budget it uses;
# the other parts of it are compared with the share fixed, so that all keep equally many tokens.

# %%
RATIO = 0.15
FIXED = {"dynamic_share": False}
VARIANTS = {
    "samkv: all parts": (from_bottom, {}),
    "samkv: fixed share": (from_bottom, FIXED),
    "samkv: fixed, no personalization": (from_bottom, FIXED | {"personalization": False}),
    "samkv: fixed, 1 stable layer": (from_bottom, FIXED | {"stable_layers": 1}),
    "samkv: fixed, fusion, θ = 0.5": (from_bottom, FIXED | {"update": "fusion", "fusion_theta": 0.5}),
    "samkv: fixed, fusion, θ = 0.9": (from_bottom, FIXED | {"update": "fusion", "fusion_theta": 0.9}),
    "samkv: fixed, no recomputation": (from_bottom, FIXED | {"recompute": False}),
    "scout: all parts": (engine, {}),
    "scout: no emphasis": (engine, {"emphasis_weight": 1.0}),
    "scout: all layers score": (engine, {"score_layers": (0.0, 1.0)}),
    "scout: recomputed in view of all": (engine, {"recompute_view": "all"}),
    "scout: recomputed from layer 0": (from_bottom, {}),
    "scout: no recomputation": (engine, {"recompute": False}),
    "full_prefill": (engine, {}),
    "naive_reuse": (engine, {}),
}


# %%
def measure(name):
    """Right answers, mean NLL of full prefill's answers, mean share of tokens kept."""
    using, changed = VARIANTS[name]
    policy = {"method": name.split(":")[0], "sequence_ratio": RATIO} | changed
    runs = [
        using.generate_scored(prompt, reference, max_new_tokens=16, **policy)
        for prompt, reference in zip(prompts, full, strict=True)
    ]
    right = sum(q.is_answered_by(result.text) for q, (result, _) in zip(questions, runs, strict=True))
    kept = fmean(result.metrics.sequence_ratio for result, _ in runs)
    return right, fmean(nll for _, nll in runs), kept


rows = {name: measure(name) for name in VARIANTS}

# %%
print(f"{'':<34} right of {len(questions)}    NLL   tokens kept")
for name, (right, nll, kept) in rows.items():
    print(f"{name:<34} {right:>6} {nll:>10.2f} {kept:>10.1%}")

# %% [markdown]
# `full_prefill` and `naive_reuse` keep everything. The second decodes from all cached KV as it is, so what lies between
# the two is what chunks lose by not having seen each other.

# %%
names = list(rows)
colours = [{"samkv": "tab:blue", "scout": "tab:orange"}.get(name.split(":")[0], "black") for name in names]
figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
axis.barh(names, [rows[name][1] for name in names], color=colours)
for i, name in enumerate(names):
    axis.text(rows[name][1], i, f" {rows[name][0]}/{len(questions)} right", va="center", fontsize="small")
axis.invert_yaxis()
axis.set_xlabel("NLL of full prefill's answer (nats/token, lower is nearer to full prefill)")
axis.spines[["top", "right"]].set_visible(False)
axis.margins(x=0.15)
plt.show()

# %% [markdown]
# ## How to read it
#
# - *Tokens kept* comes first: with the dynamic share, `samkv` may keep far less than its budget, and then does it with
#   fewer tokens, not only with other ones. Compare it with the fixed share.
# - A difference of one right answer among five is no difference. Of the likelihoods, look at gaps as wide as those
#   between `full_prefill` and `naive_reuse`, not at order among neighbours.
# - The defaults were not chosen on these questions, but on a model of 500 million parameters and other data, see
#   [the method's page](../docs/method.md). Where this plot disagrees with them, try your own model and questions before
#   you believe either.

# %% [markdown]
# ## What to try next
#
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): budgets compared on your own folder.
# - [What was read](03_what_was_read.ipynb): which tokens a variant kept, as a picture.
# - [Memory](06_memory.ipynb): what the kept tokens take.
