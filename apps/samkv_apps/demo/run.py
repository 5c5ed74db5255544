"""The demo from start to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from samkv_apps.demo import Framework
from samkv_apps.demo.corpus import Question, sections
from samkv_apps.demo.pipeline import Pipeline, make_pipeline
from samkv_apps.demo.report import Answer, Comparison, DemoReport, Source
from samkv_apps.demo.screen import Screen
from samkv_apps.models import PACKAGED, embedding_model
from samkv_apps.terminal import language_model_path
from samkv_rag import SamKVEngine
from samkv_rag.prefill import Scout

_WARM_UP = "What is the Churn?"


@dataclass(frozen=True)
class DemoOptions:
    """What `samkv demo` can be told."""

    questions: list[Question]
    folder: Path
    model: str
    method: Scout
    framework: Framework = Framework.LLAMA_INDEX


def run_demo(options: DemoOptions, screen: Screen) -> DemoReport:
    """Ingest the corpus, answer the questions with both methods, and return the figures.

    Raises:
        SamKVError: the model cannot be had, or an option is out of range.
    """
    model = language_model_path(options.model, screen.progress)
    screen.progress("Loading the models …")
    engine = SamKVEngine.from_pretrained(model, store=options.folder / "kv", method=options.method)
    pipeline = make_pipeline(options.framework, engine, options.folder / "chroma", embedding_model())
    screen.progress("Embedding the corpus and computing the KV of its chunks, once …")
    started = time.perf_counter()
    ingested = pipeline.ingest(sections())
    screen.ingested(ingested, time.perf_counter() - started, options.folder)
    comparisons = tuple(_answer_all(pipeline, engine.count_tokens, options.questions, screen))
    model_name = PACKAGED[options.model].title if options.model in PACKAGED else options.model
    store_bytes = sum(found.num_bytes for found in engine.store.keys())
    report = DemoReport(options.framework.value, model_name, ingested.added, ingested.reused, store_bytes, comparisons)
    screen.summary(report)
    return report


def _answer_all(
    pipeline: Pipeline, count_tokens: Callable[[str], int], asked: list[Question], screen: Screen
) -> Iterator[Comparison]:
    "".join(pipeline.ask(_WARM_UP)[1])
    "".join(pipeline.ask_again(method="full_prefill"))
    for number, question in enumerate(asked, start=1):
        screen.question(number, len(asked), question.question)
        comparison = _compare(pipeline, count_tokens, question, screen)
        screen.comparison(comparison)
        yield comparison


def _compare(pipeline: Pipeline, count_tokens: Callable[[str], int], question: Question, screen: Screen) -> Comparison:
    """Answer through the framework, then send the very same prompt with full prefill."""
    passages, pieces = pipeline.ask(question.question)
    text = screen.answer("SamKV", pieces)
    samkv = Answer(text, question.is_answered_by(text), pipeline.last_metrics)
    text = screen.answer("full prefill", pipeline.ask_again(method="full_prefill"))
    full = Answer(text, question.is_answered_by(text), pipeline.last_metrics)
    best_first = sorted(passages, key=lambda passage: -passage.score)
    sources = [Source(passage.file, passage.score, count_tokens(passage.text)) for passage in best_first]
    return Comparison(question.question, tuple(sources), samkv, full)
