"""The demo from start to end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from samkv_apps.demo import Framework
from samkv_apps.demo.corpus import Question, sections
from samkv_apps.demo.pipeline import Pipeline, make_pipeline
from samkv_apps.demo.report import Answer, Comparison, DemoReport
from samkv_apps.demo.screen import Screen
from samkv_apps.models import PACKAGED, embedding_model
from samkv_apps.terminal import language_model_path
from samkv_rag import SamKVEngine
from samkv_rag.prefill import Scout

_WARM_UP = "What is the Churn?"
_FULL_PREFILL = {"method": "full_prefill"}


def run_demo(
    screen: Screen, questions: Sequence[Question], folder: Path, model: str, method: Scout, framework: Framework
) -> DemoReport:
    """Ingest the corpus, answer the questions with both methods, and return the figures.

    Raises:
        SamKVError: the model cannot be loaded, or an option is out of range.
    """
    model_path = language_model_path(model, screen.progress)
    screen.progress("Loading the models …")
    engine = SamKVEngine.from_pretrained(model_path, store=folder / "kv", method=method)
    pipeline = make_pipeline(framework, engine, folder / "chroma", embedding_model())
    screen.progress("Embedding the corpus and computing the KV of its chunks, once …")
    started = time.perf_counter()
    ingested = pipeline.ingest(sections())
    screen.ingested(ingested, time.perf_counter() - started, folder)
    "".join(pipeline.ask(_WARM_UP)[1])
    "".join(pipeline.ask(_WARM_UP, **_FULL_PREFILL)[1])
    comparisons = []
    for number, question in enumerate(questions, start=1):
        screen.question(number, len(questions), question.question)
        comparisons.append(_compare(pipeline, question, screen))
        screen.comparison(comparisons[-1])
    model_name = PACKAGED[model].title if model in PACKAGED else model
    store_bytes = sum(found.num_bytes for found in engine.store.keys())
    report = DemoReport(framework.value, model_name, ingested.added, ingested.reused, store_bytes, tuple(comparisons))
    screen.summary(report)
    return report


def _compare(pipeline: Pipeline, question: Question, screen: Screen) -> Comparison:
    """Ask twice; the pipeline retrieves the same chunks and sends the same prompt."""

    def answer(label: str, pieces: Iterator[str]) -> Answer:
        text = screen.answer(label, pieces)
        return Answer(text, question.is_answered_by(text), pipeline.last_metrics)

    sources, pieces = pipeline.ask(question.question)
    samkv = answer("SamKV", pieces)
    full = answer("full prefill", pipeline.ask(question.question, **_FULL_PREFILL)[1])
    best_first = tuple(sorted(sources, key=lambda source: -source.score))
    return Comparison(question.question, best_first, samkv, full)
