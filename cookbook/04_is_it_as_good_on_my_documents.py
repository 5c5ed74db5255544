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
# # Is it as good on my documents?
#
# Keeping 15 % of the retrieved tokens is a bargain only if the answers stay right, and that depends on your
# documents, your questions and your model. This notebook measures it: a folder of documents and a table of questions
# go in; a table, plots and a recommended `sequence_ratio` come out. Put your own in their place and run it again.
#
# It needs a clone of the repository and `pip install -e ".[gguf,evaluate]"` (with `ask` for PDF files). It runs in a
# few minutes on two CPU cores; no GPU is needed.

# %%
import csv
import tempfile
from pathlib import Path

from IPython.display import Image

from samkv_apps import models
from samkv_apps.demo import corpus, quieten_libraries
from samkv_apps.evaluate import EvaluationOptions, cases_from_folder, evaluate, read_predictions, recommend

quieten_libraries()
scratch = tempfile.TemporaryDirectory()
work = Path(scratch.name)

# %% [markdown]
# ## Documents
#
# Here they are the handbook of a lighthouse that does not exist: 70 short Markdown files. Any folder of text, Markdown
# and PDF files will do.

# %%
documents = work / "documents"
documents.mkdir()
for section in corpus.sections():
    (documents / section.file).write_text(section.text, encoding="utf-8")
print(len(list(documents.iterdir())), "files")

# %% [markdown]
# ## Questions
#
# A CSV file, as a spreadsheet saves it: `question`, `answer` (several that are right, parted by `|`) and, if you know
# it, `source`, the file that holds the answer.
#
# The model used here is tiny, so these sixteen were chosen among questions that it answers rightly with full prefill
# when it is given whole sections; cut into chunks, one or the other may come out wrong. The choice favours full
# prefill, which has little left to gain. For your own model, take the questions that your users ask.

# %%
asked = [(q.question, "|".join(q.answers), q.source) for q in corpus.questions()]
asked += [
    ("How many steps does the staircase inside Skerrow tower have?", "142", "05-the-tower-today.md"),
    ("How tall is the tower at Skerrow?", "31 metres|31 meters", "05-the-tower-today.md"),
    ("What is the red sector of Skerrow Light for?", "the Combs", "08-light-character-and-range.md"),
    ("Which family owns the supply ship Solan Star?", "Harcus", "23-supply-ship-solan-star.md"),
    ("What colour is the flag put up when the water level falls below one third?", "blue", "31-water-supply.md"),
    ("Which month is the wettest at Skerrow?", "November", "33-the-weather-station.md"),
    ("Which variety of potato is grown in the walled garden?", "Hallin Blue", "39-the-walled-garden.md"),
    ("Who owns the flock of sheep on Skerrow?", "Isla Heddle", "41-the-sheep.md"),
]
questions = work / "questions.csv"
with questions.open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([("question", "answer", "source"), *asked])
print(len(asked), "questions; the first:", asked[0])

# %% [markdown]
# ## Evaluate
#
# `cases_from_folder` cuts the documents into chunks and finds, for every question, the eight nearest by embedding.
# `evaluate` then has full prefill and `scout` at four budgets answer the same prompts. The prompt is part of what is
# measured: give the one of your pipeline.

# %%
model = str(models.language_model(say=print))  # or any hub id, such as "Qwen/Qwen2.5-1.5B-Instruct"
prompt = (
    "Use these passages to answer.\n\n{passages}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)
results = work / "results"
cases = cases_from_folder(documents, questions, results, tokenize=model, top_k=8)
metrics = evaluate(
    EvaluationOptions(
        model=model,
        data=[cases],
        output_dir=results,
        methods=["scout"],
        sequence_ratios=[0.05, 0.15, 0.3, 0.5],
        prompt=prompt,
        max_new_tokens=24,
    )
)

# %% [markdown]
# ## What came out
#
# *Recall* is the share of the right answer's words that stand in the model's answer: 1 is right, also within a whole
# sentence. Interval: of the difference in recall to full prefill, paired question by question, 95 %. Seconds are those
# of the machine and of what else it does; `÷ full` is the median, over questions, of the ratio to full prefill.

# %%
print("method        ratio   recall   difference, 95%    first token   ÷ full   KV in memory")
for run in metrics.runs:
    low, high = run.recall_diff_ci95
    print(
        f"{run.method:<12} {run.sequence_ratio:>6g} {run.recall:>8.2f} {low:>+8.2f} to {high:+.2f}"
        f" {run.ttft_s_median:>12.2f} s {run.ttft_ratio_median:>8.2f} {run.kv_bytes_resident_mean / 1e6:>11.1f} MB"
    )

# %% [markdown]
# ## The recommendation
#
# The smallest ratio that loses no more recall than the tolerance. Read the caveats: with sixteen questions, of which
# one is 0.06 of recall, a direction is all there is to be had.

# %%
print(metrics.recommendation.sentence())
for caveat in metrics.recommendation.caveats():
    print("-", caveat)

# %% [markdown]
# How much may be lost is yours to say. Nothing is computed again for another tolerance:

# %%
predictions = list(read_predictions(results))
for tolerance in (0.0, 0.1, 0.5):
    found = recommend(predictions, tolerance)
    print(f"tolerance {tolerance:g}: {found.method}, sequence_ratio {found.sequence_ratio:g}")

# %% [markdown]
# ## Quality against the budget
#
# The dashed line is full prefill. A bar is the interval of the difference to it: where a bar crosses the line, these
# questions cannot tell the two apart. A larger budget need not be better: what it adds may distract, too.

# %%
Image(filename=results / "quality.png")

# %% [markdown]
# ## Time and memory against the budget

# %%
Image(filename=results / "cost.png")

# %% [markdown]
# Both grow with the ratio. Even the largest stays below full prefill, since the chunks' KV is read, not computed, and
# only what is kept is computed again.
#
# ## Where it went wrong
#
# Figures are no substitute for reading. Answers that full prefill had right and the smallest budget had not:

# %%
full = {p.case: p for p in predictions if p.method == "full_prefill"}
lost = [p for p in predictions if p.ratio == 0.05 and p.recall < full[p.case].recall]
for prediction in lost[:4]:
    print("full prefill:", full[prediction.case].prediction)
    print("ratio 0.05:  ", prediction.prediction, "\n")

# %% [markdown]
# ## Your own folder
#
# Set `documents`, `questions`, `model` and `prompt` above, or do the same on the command line:
#
# ```bash
# samkv evaluate --model MODEL --documents FOLDER --questions questions.csv --prompt prompt.txt \
#     --sequence-ratio 0.05,0.15,0.3,0.5 --output-dir results
# ```
#
# The folder `results` then holds `report.md` with everything above, each answer in `predictions.jsonl`, and the
# prompts' parts in `cases.jsonl`. An interrupted run goes on where it stopped. A small model needs larger budgets than
# a large one: try the one that you will use.

# %%
print(sorted(path.name for path in results.iterdir()))
scratch.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the tokens behind a single answer, when one of them is wrong.
# - [Ablation](05_ablation.ipynb): the method's parts, turned off one by one.
# - [Memory](06_memory.ipynb): what the kept tokens take, up to the model's window.
