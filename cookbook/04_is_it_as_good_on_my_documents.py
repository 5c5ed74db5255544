# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Is it as good on my documents?
#
# Retaining 15% of the retrieved tokens is only worth it if the answers stay right. That depends on your documents, your
# questions and your model. This notebook shows how to measure it: a folder of documents and a table of questions go in,
# a table of figures comes out. Put your own in their place.
#
# It needs a clone of the repository and `pip install -e ".[gguf]" -e "apps[demo,evaluate]"`.

# %%
import csv
import logging
import tempfile
from pathlib import Path

from samkv_apps.demo import corpus
from samkv_apps.evaluate import EvaluationOptions, cases_from_folder, evaluate, read_predictions
from samkv_apps.models import language_model

logging.getLogger("samkv_rag").setLevel(logging.WARNING)  # what it stores is not told here
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## Documents
#
# Here they are eight short Markdown files, from the handbook of a lighthouse that does not exist. Any folder of text,
# Markdown and PDF files will do.

# %%
documents = folder / "documents"
documents.mkdir()
for section in corpus.sections()[22:30]:
    (documents / section.file).write_text(section.text, encoding="utf-8")
print(len(list(documents.iterdir())), "files")

# %% [markdown]
# ## Questions
#
# A CSV file, as a spreadsheet saves it: `question`, `answer` (several that are right, separated by `|`) and, if you
# know it, `source`, the file that holds the answer.
#
# Three questions are enough to show how it works, and far too few to decide anything. Take a hundred or more that your
# users ask.

# %%
asked = [
    ("What are the names of the two diesel generators at Skerrow?", "Flora and Mabel", "27-the-generators.md"),
    ("Who is the engineer at Skerrow?", "Dvorak", "30-the-engineer.md"),
    ("Which family owns the supply ship Solan Star?", "Harcus", "23-supply-ship-solan-star.md"),
]
questions = folder / "questions.csv"
with questions.open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([("question", "answer", "source"), *asked])

# %% [markdown]
# ## Evaluate
#
# `cases_from_folder` cuts the documents into chunks and finds, for every question, the two nearest by embedding.
# `evaluate` then has full prefill and `scout` answer the same prompts. The prompt is part of what is measured: give the
# one of your pipeline.

# %%
model = str(language_model(say=print))  # or any hub id, such as "Qwen/Qwen2.5-1.5B-Instruct"
prompt = (
    "Use these passages to answer.\n\n{passages}\n\n"
    "Answer the question in one short sentence, using only the passages above.\nQuestion: {question}"
)
results = folder / "results"
cases = cases_from_folder(documents, questions, results, tokenize=model, top_k=2)
options = EvaluationOptions(
    model=model,
    data=[cases],
    output_dir=results,
    methods=["scout"],
    sequence_ratios=[0.15],
    prompt=prompt,
    max_new_tokens=12,
)
metrics = evaluate(options)

# %% [markdown]
# ## What came out
#
# *Recall* is the share of the right answer's words that stand in the model's answer: 1 is right, also within a whole
# sentence. *Retained* is the share of the chunks' tokens.

# %%
print("method         ratio  recall  retained  KV in memory")
for run in metrics.runs:
    print(
        f"{run.method:<13}{run.sequence_ratio:>7g}{run.recall:>8.2f}{run.sequence_ratio_mean:>10.2f}"
        f"{run.kv_bytes_resident_mean / 1e6:>11.1f} MB"
    )

# %% [markdown]
# `metrics.runs` also has the time to the first token and the 95% interval of each difference to full prefill, paired
# question by question. Figures on public questions and models of several sizes are on
# [the method's page](../docs/method.md).

# %% [markdown]
# ## Read the answers
#
# Figures are no substitute for reading. Here answers are cut off after twelve tokens, to keep the run short, which
# costs recall; and `scout` lost the name of the family.

# %%
for prediction in read_predictions(results):
    ratio = "" if prediction.ratio is None else f"{prediction.ratio:g}"
    print(f"{prediction.method:<13}{ratio:<5} {prediction.prediction}")

# %% [markdown]
# ## Your own folder
#
# Set `documents`, `questions`, `model` and `prompt` above, or do the same on the command line:
#
# ```bash
# samkv evaluate --model MODEL --documents FOLDER --questions questions.csv --prompt prompt.txt \
#     --sequence-ratio 0.05,0.15,0.3,0.5 --plots --output-dir results
# ```
#
# The folder then holds `report.md` with all figures, each answer in `predictions.jsonl`, the prompts' parts in
# `cases.jsonl`, and with `--plots` the plots. An interrupted run continues where it stopped. A small model needs larger
# budgets than a large one: try the model that you will use.

# %%
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the tokens behind a single answer, when one of them is wrong
# - [Evaluate on your documents](../docs/evaluate.md): all options, and cases of your own retrieval
# - [The method](../docs/method.md): its choices, what lost, and what memory it takes
