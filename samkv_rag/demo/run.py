"""The demo from start to end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.llms.samkv import SamKVLLM

from samkv_rag import SamKVConfig, SamKVEngine
from samkv_rag.demo.corpus import Question, sections
from samkv_rag.demo.models import MODEL_NAME, language_model
from samkv_rag.demo.pipeline import Pipeline, pieces
from samkv_rag.demo.report import Answer, Comparison, DemoReport, Source
from samkv_rag.demo.screen import Screen
from samkv_rag.evaluation.embedding import embedding_model
from samkv_rag.metrics import GenerationMetrics

MAX_ANSWER_TOKENS = 40
_WARM_UP = "What is the Churn?"


@dataclass(frozen=True)
class DemoOptions:
    """What `samkv demo` can be told."""

    questions: list[Question]
    folder: Path
    model: str | None
    config: SamKVConfig


def run_demo(options: DemoOptions, screen: Screen) -> DemoReport:
    """Ingest the corpus, answer the questions with both methods, and return the figures.

    Raises:
        SamKVError: the model cannot be had, or an option is out of range.
    """
    model = options.model or language_model(screen.progress)
    screen.progress("Loading the models …")
    engine = SamKVEngine.from_pretrained(model, store=options.folder / "kv", config=options.config)
    llm = SamKVLLM.from_engine(engine, max_tokens=MAX_ANSWER_TOKENS)
    pipeline = Pipeline(llm, options.folder / "chroma", embedding_model())
    added, reused = _ingest(pipeline, options.folder, screen)
    comparisons = tuple(_answer_all(pipeline, options.questions, screen))
    report = DemoReport(options.model or MODEL_NAME, added, reused, engine.store.nbytes(), comparisons)
    screen.summary(report)
    return report


def _ingest(pipeline: Pipeline, folder: Path, screen: Screen) -> tuple[int, int]:
    screen.progress("Embedding the corpus and computing the KV of its chunks, once …")
    started = time.perf_counter()
    ingested = pipeline.ingest(sections())
    screen.ingested(ingested.added, ingested.reused, time.perf_counter() - started, folder)
    return ingested.added, ingested.reused


def _answer_all(pipeline: Pipeline, asked: list[Question], screen: Screen) -> Iterator[Comparison]:
    query_engine = pipeline.query_engine()
    _exhaust(pieces(query_engine.query(_WARM_UP)))
    _exhaust(pipeline.sent.send_again(pipeline.llm, method="full_prefill"))
    for number, question in enumerate(asked, start=1):
        screen.question(number, len(asked), question.question)
        comparison = _compare(pipeline, query_engine, question, screen)
        screen.comparison(comparison)
        yield comparison


def _compare(pipeline: Pipeline, query_engine: Any, question: Question, screen: Screen) -> Comparison:
    """Answer through the query engine, then send the very same prompt with full prefill."""
    response = query_engine.query(question.question)
    text = screen.answer("SamKV", pieces(response))
    samkv = Answer(text, question.is_answered_by(text), _last_metrics(pipeline))
    text = screen.answer("full prefill", pipeline.sent.send_again(pipeline.llm, method="full_prefill"))
    full = Answer(text, question.is_answered_by(text), _last_metrics(pipeline))
    return Comparison(question.question, _sources(response, pipeline), samkv, full)


def _sources(response: Any, pipeline: Pipeline) -> tuple[Source, ...]:
    count = pipeline.llm.engine.count_tokens
    found = [Source(n.metadata["file"], n.score or 0.0, count(n.text)) for n in response.source_nodes]
    return tuple(sorted(found, key=lambda source: -source.score))


def _last_metrics(pipeline: Pipeline) -> GenerationMetrics:
    metrics = pipeline.llm.last_metrics
    assert metrics is not None  # an answer has been generated
    return metrics


def _exhaust(pieces: Iterable[str]) -> None:
    for _ in pieces:
        pass
