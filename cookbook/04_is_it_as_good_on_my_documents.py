# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
# ---

# %% [markdown]
# # Is it as good on my documents?
#
# Retaining 15% of the retrieved tokens is only worth it if the answers stay right. That depends on your documents, your
# questions and your model. This notebook shows how to measure it: from a folder of documents and a table of questions
# it makes a table of figures. Replace them with your own.
#
# You need a clone of the repository and `pip install -e ".[gguf]" -e "apps[demo,evaluate]"`.

# %%
import csv
import logging
import tempfile
from pathlib import Path

from samkv_apps.demo import corpus
from samkv_apps.evaluate import EvaluationOptions, cases_from_folder, evaluate, read_predictions
from samkv_apps.models import language_model

logging.getLogger("samkv_rag").setLevel(logging.WARNING)  # hide messages about what is stored
temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)

# %% [markdown]
# ## Documents
#
# These are eight short Markdown files from the handbook of a lighthouse that does not exist. Any folder of text,
# Markdown and PDF files works.

# %%
documents = folder / "documents"
documents.mkdir()
for section in corpus.sections()[22:30]:
    (documents / section.file).write_text(section.text, encoding="utf-8")
print(len(list(documents.iterdir())), "files")

# %% [markdown]
# ## Questions
#
# A CSV file, as a spreadsheet saves it, with the columns `question`, `answer` (several right answers are separated by
# `|`) and, if you know it, `source`, the file that contains the answer.
#
# Three questions are enough to show how it works, but far too few to decide anything. Use a hundred or more that your
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
# `cases_from_folder` cuts the documents into chunks and finds the two nearest by embedding for every question.
# `evaluate` then answers the same prompts with full prefill and with `scout`. The prompt affects the result, so give
# the one of your pipeline.

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
# ## The figures
#
# *Recall* is the share of the right answer's words that occur in the model's answer; 1 means right, even inside a
# longer sentence. *Retained* is the share of the chunks' tokens that was retained.

# %%
print("method         ratio  recall  retained  KV in memory")
for run in metrics.runs:
    print(
        f"{run.method:<13}{run.sequence_ratio:>7g}{run.recall:>8.2f}{run.sequence_ratio_mean:>10.2f}"
        f"{run.kv_bytes_resident_mean / 1e6:>11.1f} MB"
    )

# %% [markdown]
# `metrics.runs` also has the time to the first token and the 95% interval of each difference from full prefill, paired
# by question. Figures on public questions with models of several sizes are on [the method's page](../docs/method.md).

# %% [markdown]
# ## Read the answers
#
# Figures do not replace reading. These answers are cut off after twelve tokens to keep the run short, which costs
# recall, and `scout` lost the name of the family.

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
# The folder then contains `report.md` with all figures, each answer in `predictions.jsonl`, the prompts' parts in
# `cases.jsonl` and, with `--plots`, the plots. An interrupted run continues where it stopped. A small model needs
# larger budgets than a large one, so evaluate the model that you will use.

# %%
temporary.cleanup()

# %% [markdown]
# ## What to try next
#
# - [What was read](03_what_was_read.ipynb): the tokens behind a single answer, for example a wrong one
# - [Evaluate on your documents](../docs/evaluate.md): all options, and cases from your own retrieval
# - [The method](../docs/method.md): its choices, the alternatives that lost, and its memory
