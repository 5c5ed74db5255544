"""Answer one case with one method."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from samkv_apps.evaluate.compressors import COMPRESSORS, Compressor, FewerChunks
from samkv_apps.evaluate.controls import (
    MORE_CHUNKS,
    NO_CONTEXT,
    SAME_TTFT,
    SPANS_AS_TEXT,
    TEXT_CONTROLS,
    answer_retained,
    retained_texts,
    spans_as_text,
)
from samkv_apps.evaluate.datasets import Case
from samkv_apps.evaluate.errors import EvaluationError
from samkv_apps.evaluate.options import FULL, EvaluationOptions, Task
from samkv_apps.evaluate.prompts import build_messages
from samkv_apps.evaluate.records import Prediction
from samkv_apps.evaluate.retrieval import in_order
from samkv_apps.evaluate.scoring import answer_recall, exact_match, f1
from samkv_rag.engine import SamKVEngine
from samkv_rag.generation_result import GenerationResult
from samkv_rag.ingestion.recognition import text_digest
from samkv_rag.prefill import Scout
from samkv_rag.results import ChunkUse, GenerationMetrics

CHUNKS_MISSED = "chunks_missed"
Earlier = Mapping[Task, Prediction]
"""Earlier answers to the same case: full prefill's, and perhaps `scout`'s."""


class Answerer:
    """Gives every method the same prompt, clock and decoding."""

    def __init__(self, engine: SamKVEngine, options: EvaluationOptions) -> None:
        self._engine = engine
        self._options = options
        self._compressors: dict[str, Compressor] = {}

    def answer(self, data: str, case: Case, task: Task, earlier: Earlier) -> Prediction:
        """Run ``task`` on ``case`` of ``data``.

        Raises:
            EvaluationError: the method fell back to full prefill, or a compressor exceeded its budget.
        """
        if task.method in COMPRESSORS or task.method in TEXT_CONTROLS:
            return self._answer_from_text(data, case, task, earlier)
        if task.method == MORE_CHUNKS:
            return self._answer_from_more(data, case, task, earlier[FULL])
        return self._answer(data, case, task, case.chunks)

    def _answer(self, data: str, case: Case, task: Task, texts: Sequence[str]) -> Prediction:
        result = self._generate(case, task, texts, self._options.max_new_tokens)
        if reason := result.metrics.fallback_reason:
            raise EvaluationError(f"case {case.case_id} of {data}: {task.method} fell back to full prefill: {reason}")
        return self._as_prediction(data, case, task, result)

    def _generate(self, case: Case, task: Task, texts: Sequence[str], max_new_tokens: int = 1) -> GenerationResult:
        return self._engine.generate_scored(
            build_messages(case.question, texts, self._options.prompt, self._options.template),
            case.answers[0],
            max_new_tokens=max_new_tokens,
            stop="\n",
            method=self._options.method(task),
        )

    def _as_prediction(self, data: str, case: Case, task: Task, result: GenerationResult) -> Prediction:
        metrics, text = result.metrics, result.text.strip()
        assert result.reference_nll is not None
        return Prediction(
            data=data,
            case=case.case_id,
            method=task.method,
            ratio=task.ratio,
            prediction=text,
            f1=f1(text, case.answers),
            em=exact_match(text, case.answers),
            recall=answer_recall(text, case.answers),
            gold_nll=result.reference_nll,
            ttft_s=metrics.ttft_s,
            total_s=metrics.total_s,
            phase_s=metrics.phase_s,
            sequence_ratio=metrics.sequence_ratio,
            recompute_ratio=metrics.recompute_ratio,
            kv_bytes_resident=metrics.kv_bytes_resident,
            kv_bytes_full=metrics.kv_bytes_full,
            prompt_tokens=metrics.prompt_tokens,
            chunk_tokens=metrics.chunk_tokens,
            supporting_recall=self._supporting_recall(case, result.chunks),
            diagnostics={diagnostic.name: diagnostic.message for diagnostic in metrics.diagnostics} | _missed(metrics),
            answer_retained=answer_retained(case.answers, retained_texts(result), case.every_chunk),
        )

    def _supporting_recall(self, case: Case, chunks: Sequence[ChunkUse]) -> float | None:
        """Return the share of the supporting chunks' tokens that were retained; None if the data names none."""
        if not case.supporting:
            return None
        used = {use.digest: use for use in chunks}
        found = {text: used.get(text_digest(text.strip())) for text in case.supporting}
        num_tokens = sum(use.num_tokens if use else self._engine.count_tokens(text) for text, use in found.items())
        return sum(len(use.retained_tokens) for use in found.values() if use) / num_tokens

    # Full prefill of other text

    def _answer_from_text(self, data: str, case: Case, task: Task, earlier: Earlier) -> Prediction:
        """Answer from a shortened prompt. The time to the first token includes the shortening."""
        full = earlier[FULL]
        texts, compress_s = self._shortened(data, case, task, earlier)
        answered = self._answer(data, case, task, texts)
        share = sum(map(self._engine.count_tokens, texts)) / full.chunk_tokens
        return replace(
            answered,
            ttft_s=answered.ttft_s + compress_s,
            total_s=answered.total_s + compress_s,
            phase_s={"compress": compress_s} | answered.phase_s,
            sequence_ratio=share,
            recompute_ratio=share,
            kv_bytes_full=full.kv_bytes_full,
            prompt_tokens=full.prompt_tokens,
            chunk_tokens=full.chunk_tokens,
            supporting_recall=self._recall_of_whole_chunks(case, texts),
            answer_retained=answer_retained(case.answers, [texts], case.every_chunk),
        )

    def _shortened(self, data: str, case: Case, task: Task, earlier: Earlier) -> tuple[list[str], float]:
        """Return the texts that replace the chunks, and the seconds that a user would wait for them."""
        if task.method == NO_CONTEXT:
            return [], 0.0
        if task.method == SPANS_AS_TEXT:  # it tests what is read; choosing would cost what `scout` costs
            return spans_as_text(self._generate(case, Task(Scout.name, task.ratio), case.chunks)), 0.0
        if task.method == SAME_TTFT:
            return self._in_time(case, earlier[FULL], earlier[Task(Scout.name, task.ratio)].ttft_s)
        max_tokens = int((task.ratio or 1.0) * earlier[FULL].chunk_tokens)
        texts, compress_s = self._compressed(task.method, case, max_tokens)
        if (num_left := sum(map(self._engine.count_tokens, texts))) > max_tokens:
            raise EvaluationError(
                f"case {case.case_id} of {data}: {task.method} kept {num_left} tokens of a budget of {max_tokens}"
            )
        return texts, compress_s

    def _in_time(self, case: Case, full: Prediction, ttft_s: float) -> tuple[list[str], float]:
        """Return the nearest chunks that full prefill can search and read in ``ttft_s``.

        The number of tokens is proportional to full prefill's time on the case. One trial corrects it.
        """
        other_tokens = full.prompt_tokens - full.chunk_tokens
        first_guess = int(full.prompt_tokens * ttft_s / full.ttft_s) - other_tokens
        texts, compress_s = self._compressed(FewerChunks.name, case, first_guess)
        num_tokens = other_tokens + sum(map(self._engine.count_tokens, texts))
        prefill_s = self._generate(case, FULL, texts).metrics.ttft_s
        max_tokens = int(num_tokens * (ttft_s - compress_s) / prefill_s) - other_tokens
        return self._compressed(FewerChunks.name, case, max_tokens)

    def _compressed(self, name: str, case: Case, max_tokens: int) -> tuple[list[str], float]:
        if name not in self._compressors:
            self._compressors[name] = COMPRESSORS[name](self._engine)
        compressor = self._compressors[name]
        compressor.prepare(case.chunks)  # part of ingestion, so not timed
        started = time.perf_counter()
        texts = compressor.compress(case.question, case.chunks, max_tokens)
        return texts, time.perf_counter() - started

    def _recall_of_whole_chunks(self, case: Case, texts: Sequence[str]) -> float | None:
        """Return the share of the supporting chunks' tokens in ``texts``; None if ``texts`` are not whole chunks."""
        if case.supporting is None or not set(texts) <= set(case.chunks):
            return None
        num_tokens = {chunk: self._engine.count_tokens(chunk) for chunk in case.supporting}
        return sum(num_tokens[text] for text in set(texts) & case.supporting) / sum(num_tokens.values())

    # `scout` over more chunks

    def _answer_from_more(self, data: str, case: Case, task: Task, full: Prediction) -> Prediction:
        """Answer from as many of the best chunks as fit full prefill's time, estimated from a trial over all."""
        probe_s = self._generate(case, task, self._best(case, len(case.more))).metrics.ttft_s
        num_chunks = max(1, int(len(case.more) * min(1.0, full.ttft_s / probe_s)))
        answered = self._answer(data, case, task, self._best(case, num_chunks))
        return replace(answered, kv_bytes_full=full.kv_bytes_full)

    def _best(self, case: Case, num_chunks: int) -> list[str]:
        return in_order(case.more[:num_chunks], self._options.chunk_order, self._options.seed_of(case))


def _missed(metrics: GenerationMetrics) -> dict[str, str]:
    """Report missed chunks: all were ingested, and a miss makes the time to the first token wrong."""
    missed = metrics.chunks_missed
    return {CHUNKS_MISSED: f"{missed} chunks were computed on the spot"} if missed else {}
