"""One method answers one case."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from samkv_apps.evaluate.compressors import COMPRESSORS, Compressor
from samkv_apps.evaluate.datasets import Case, build_messages
from samkv_apps.evaluate.options import EvaluationOptions, Task
from samkv_apps.evaluate.records import Prediction
from samkv_apps.evaluate.scoring import answer_recall, exact_match, f1
from samkv_rag.engine import SamKVEngine
from samkv_rag.exceptions import EvaluationError
from samkv_rag.generation_result import GenerationResult
from samkv_rag.ingestion.recognition import text_digest
from samkv_rag.results import ChunkUse, GenerationMetrics

CHUNKS_MISSED = "chunks_missed"


class Answerer:
    """The same prompt, clock and decoding for every method."""

    def __init__(self, engine: SamKVEngine, options: EvaluationOptions) -> None:
        self._engine = engine
        self._options = options
        self._compressors: dict[str, Compressor] = {}

    def answer(self, data: str, case: Case, task: Task, reference: Prediction | None) -> Prediction:
        """Run ``task`` on ``case`` of ``data``; ``reference`` is full prefill's answer, None where this is it.

        Raises:
            EvaluationError: full prefill ran instead of the method, or a compressor passed its budget.
        """
        if task.method in COMPRESSORS:
            assert reference is not None
            return self._answer_compressed(data, case, task, reference)
        return self._answer(data, case, task, case.chunks)

    def _answer(self, data: str, case: Case, task: Task, texts: Sequence[str]) -> Prediction:
        result = self._engine.generate_scored(
            build_messages(case.question, texts, self._options.prompt),
            case.answers[0],
            max_new_tokens=self._options.max_new_tokens,
            stop="\n",
            method=self._options.method(task),
        )
        if reason := result.metrics.fallback_reason:
            raise EvaluationError(f"case {case.case_id} of {data}: {task.method} fell back to full prefill: {reason}")
        return _as_prediction(data, case, task, result)

    def _answer_compressed(self, data: str, case: Case, task: Task, reference: Prediction) -> Prediction:
        """Full prefill of a shortened prompt; the shortening counts into the time to the first token."""
        max_tokens = int((task.ratio or 1.0) * reference.chunk_tokens)
        compressor = self._compressor(task.method)
        compressor.prepare(case.chunks)  # a part of ingestion, so outside the clock
        started = time.perf_counter()
        texts = compressor.compress(case.question, case.chunks, max_tokens)
        compress_s = time.perf_counter() - started
        num_left = sum(map(self._engine.count_tokens, texts))
        if num_left > max_tokens:
            raise EvaluationError(
                f"case {case.case_id} of {data}: {task.method} kept {num_left} tokens of a budget of {max_tokens}"
            )
        full = self._answer(data, case, task, texts)
        return replace(
            full,
            ttft_s=full.ttft_s + compress_s,
            total_s=full.total_s + compress_s,
            phase_s={"compress": compress_s} | full.phase_s,
            sequence_ratio=num_left / reference.chunk_tokens,
            recompute_ratio=num_left / reference.chunk_tokens,
            kv_bytes_full=reference.kv_bytes_full,
            prompt_tokens=reference.prompt_tokens,
            chunk_tokens=reference.chunk_tokens,
            supporting_recall=self._recall_of_whole_chunks(case, texts),
        )

    def _compressor(self, name: str) -> Compressor:
        if name not in self._compressors:
            self._compressors[name] = COMPRESSORS[name](self._engine)
        return self._compressors[name]

    def _recall_of_whole_chunks(self, case: Case, texts: Sequence[str]) -> float | None:
        """Share of the supporting chunks' tokens among ``texts``; None where these are no whole chunks."""
        if case.supporting is None or not set(texts) <= set(case.chunks):
            return None
        num_tokens = {chunk: self._engine.count_tokens(chunk) for chunk in case.supporting}
        return sum(num_tokens[text] for text in set(texts) & case.supporting) / sum(num_tokens.values())


def _as_prediction(data: str, case: Case, task: Task, result: GenerationResult) -> Prediction:
    metrics, text = result.metrics, result.text.strip()
    return Prediction(
        data=data,
        case=case.case_id,
        method=task.method,
        ratio=task.ratio,
        prediction=text,
        f1=f1(text, case.answers),
        em=exact_match(text, case.answers),
        recall=answer_recall(text, case.answers),
        gold_nll=result.reference_nll or 0.0,
        ttft_s=metrics.ttft_s,
        total_s=metrics.total_s,
        phase_s=metrics.phase_s,
        sequence_ratio=metrics.sequence_ratio,
        recompute_ratio=metrics.recompute_ratio,
        kv_bytes_resident=metrics.kv_bytes_resident,
        kv_bytes_full=metrics.kv_bytes_full,
        prompt_tokens=metrics.prompt_tokens,
        chunk_tokens=metrics.chunk_tokens,
        supporting_recall=_supporting_recall(case, result.chunks),
        diagnostics={diagnostic.name: diagnostic.message for diagnostic in metrics.diagnostics} | _missed(metrics),
    )


def _missed(metrics: GenerationMetrics) -> dict[str, str]:
    """All chunks were ingested before; where one was not found, the time to the first token is not what it says."""
    missed = metrics.chunks_missed
    return {CHUNKS_MISSED: f"{missed} chunks were computed on the spot"} if missed else {}


def _supporting_recall(case: Case, chunks: Sequence[ChunkUse]) -> float | None:
    """Share of the supporting chunks' tokens that were kept; None where the data names no such chunk."""
    supporting = {text_digest(text.strip()) for text in case.supporting or ()}
    uses = [use for use in chunks if use.digest in supporting]
    num_tokens = sum(use.num_tokens for use in uses)
    return sum(len(use.retained_tokens) for use in uses) / num_tokens if num_tokens else None
