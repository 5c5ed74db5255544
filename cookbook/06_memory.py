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
# # Memory: what an answer holds, and where the rest lies
#
# The KV of a long context is what fills memory. Here it is measured against the context's length, up to the model's
# window, for full prefill, for `scout` and for CacheBlend, both at a ratio of 0.15: the KV that decoding keeps, the
# peak of the whole process until the answer is there, and what is left after it. Then: how much of it lies on disk.
#
# It needs a clone of the repository and `pip install -e ".[gguf,evaluate]"`. It runs in a few minutes on two CPU cores
# with 2 GB of memory; no GPU is needed.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from samkv_rag import SamKVConfig, SamKVEngine
from samkv_apps import models
from samkv_apps.demo import corpus, quieten_libraries

quieten_libraries()
scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)
model = str(models.language_model(say=print))  # any hub id works

# %% [markdown]
# ## Contexts
#
# The sections of an invented lighthouse's handbook, as many as it takes for about 1,000, 2,000, 4,000 and 7,500 tokens;
# SmolLM2's window is 8,192. Their KV is computed once and stored on disk.

# %%
engine = SamKVEngine.from_pretrained(model, store=work / "kv")


def sections_of(num_tokens):
    """The first sections, while they stay within so many tokens."""
    texts, total = [], 0
    for section in corpus.sections():
        total += engine.count_tokens(section.text)
        if total > num_tokens:
            break
        texts.append(section.text)
    return texts


contexts = {length: sections_of(length) for length in (1000, 2000, 4000, 7500)}
report = engine.add_chunks(contexts[7500])
print(f"{report.num_added} chunks of {report.num_tokens:,} tokens: {engine.store.nbytes() / 1e6:.0f} MB on disk")

# %% [markdown]
# ## One process for each figure
#
# Memory that another run left behind would falsify the next, so each figure comes from a process of its own: it loads
# the model, answers a short prompt to be warm, notes how much memory it has, answers over the context, and tells the
# peak above that note. Linux tells the peak; elsewhere that column stays empty.

# %%
CHILD = """
import ctypes, gc, json, sys
from pathlib import Path
from samkv_rag import SamKVEngine
from samkv_apps.demo import quieten_libraries

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

quieten_libraries()
task = json.loads(sys.stdin.read())
engine = SamKVEngine.from_pretrained(task["model"], store=task["store"])
engine.generate("Hello", max_new_tokens=4)
gc.collect()
linux = Path("/proc/self/clear_refs").exists()
if linux:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS:")
result = engine.generate(task["prompt"], max_new_tokens=8, method=task["method"], sequence_ratio=0.15)
figures = {"kv": result.metrics.kv_bytes_resident, "tokens": result.metrics.prompt_tokens}
figures["peak"] = resident("VmHWM:") - before if linux else None
gc.collect()
if linux:
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, where the C library is glibc
figures["after"] = resident("VmRSS:") - before if linux else None
print(json.dumps(figures))
"""


def measure(method, chunks):
    prompt = [{"role": "user", "content": "\n\n".join([*chunks, "Who is the engineer at Skerrow?"])}]
    task = json.dumps({"model": model, "store": str(work / "kv"), "method": method, "prompt": prompt})
    run = subprocess.run([sys.executable, "-c", CHILD], input=task, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


METHODS = ("full_prefill", "cacheblend", "scout")
rows = {(method, length): measure(method, chunks) for length, chunks in contexts.items() for method in METHODS}


# %%
def megabytes(num_bytes):
    return "" if num_bytes is None else f"{num_bytes / 1e6:.1f}"


print("tokens of the prompt   method          KV kept, MB   peak, MB   left after, MB")
for (method, _), row in rows.items():
    figures = [megabytes(row[name]) for name in ("kv", "peak", "after")]
    print(f"{row['tokens']:>20,}   {method:<14} {figures[0]:>12} {figures[1]:>10} {figures[2]:>16}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
styles = {"full_prefill": "k-o", "cacheblend": "C0--s", "scout": "C1-o"}
for axis, name, title in zip(
    axes, ("kv", "peak"), ("KV kept for decoding", "peak above the loaded model"), strict=True
):
    for method in METHODS:
        own = [row for (m, _), row in rows.items() if m == method and row[name] is not None]
        axis.plot([r["tokens"] for r in own], [r[name] / 1e6 for r in own], styles[method], label=method, ms=4)
    axis.set(title=title, xlabel="tokens of the prompt", ylabel="MB (10⁶ bytes)")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
plt.show()
# %% [markdown]
# What is kept is exact arithmetic, and on the left two lines lie on one another: full prefill and CacheBlend hold the
# KV of every token, CacheBlend because it recomputes few tokens but decodes over all. `scout` holds 15 % of the chunks'
# tokens and the text around them. While it selects, it reads the chunks' KV one layer at a time and lets go of each
# layer before the next, so that its peak stays far below full prefill's too. The peaks are those of whole processes and
# differ a little from run to run.
#
# *Left after* is what the process has, beyond what it had before, once the answer is given and the allocator was asked
# to hand back what is free: a few megabytes more or less, which do not grow with the context. None of the prompt's KV
# stays.

# %%
share = {length: rows["scout", length]["kv"] / rows["full_prefill", length]["kv"] for length in contexts}
print({length: f"{value:.3f}" for length, value in share.items()})
assert all(value < 0.25 for value in share.values())

# %% [markdown]
# ## Where the KV lies
#
# On disk, one file a chunk, and memory holds an index of keys. Disk is cheap but not free: `kv_dtype` quantises what is
# stored. The same chunks in each of the dtypes:

# %%
for kv_dtype in ("auto", "int8", "int4"):
    store = work / f"kv-{kv_dtype}"
    small = SamKVEngine.from_pretrained(model, store=store, config=SamKVConfig(kv_dtype=kv_dtype))
    added = small.add_chunks(contexts[2000])
    num_bytes = small.store.nbytes()
    print(f"{kv_dtype:<5} {num_bytes / 1e6:>6.1f} MB, {num_bytes / added.num_tokens / 1e3:.1f} KB a token")

# %% [markdown]
# `auto` is the model's own dtype. Beside keys and values a file holds the hidden states that recomputation starts
# from, the token ids and checksums, so that the sizes do not fall quite by the factors of the dtypes. What quantisation
# costs in quality is measured in [the file format's page](../docs/format.md); for a store with a budget, or tiers of
# memory, disk and a remote one, see [stores](../docs/stores.md).

# %%
scratch.cleanup()

# %% [markdown]
# ## What to try next
#
# - [Many documents](07_many_documents.ipynb): a store of thousands of chunks, kept in step with its documents.
# - [Is it as good on my documents?](04_is_it_as_good_on_my_documents.ipynb): the quality side of the same choice.
# - `python -m benchmarks.memory` in the repository: contexts of up to 64,000 tokens on a larger model's shape.
