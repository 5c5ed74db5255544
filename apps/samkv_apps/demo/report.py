"""The figures of the demo, also as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from samkv_rag.results import GenerationMetrics


@dataclass(frozen=True)
class Source:
    """A retrieved chunk."""

    file: str
    score: float
    tokens: int


@dataclass(frozen=True)
class Answer:
    """One answer, whether it contains an expected word, and its metrics."""

    text: str
    correct: bool
    metrics: GenerationMetrics


@dataclass(frozen=True)
class Comparison:
    """One question, answered from the same prompt by both methods."""

    question: str
    sources: tuple[Source, ...]
    samkv: Answer
    full: Answer

    @property
    def ttft_ratio(self) -> float:
        """Time to first token, SamKV ÷ full prefill."""
        return self.samkv.metrics.ttft_s / self.full.metrics.ttft_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        metrics, metrics_full = self.samkv.metrics, self.full.metrics
        return {
            "question": self.question,
            "answer": self.samkv.text,
            "answer_full": self.full.text,
            "correct": self.samkv.correct,
            "correct_full": self.full.correct,
            "sources": [asdict(source) for source in self.sources],
            "ttft_s": metrics.ttft_s,
            "ttft_s_full": metrics_full.ttft_s,
            "sequence_ratio": metrics.sequence_ratio,
            "recompute_ratio": metrics.recompute_ratio,
            "kv_bytes_resident": metrics.kv_bytes_resident,
            "kv_bytes_full": metrics_full.kv_bytes_resident,
            "chunks_hit": metrics.chunks_hit,
            "chunks_total": metrics.chunks_total,
            "chunk_tokens": metrics.chunk_tokens,
            "prompt_tokens": metrics.prompt_tokens,
        }


@dataclass(frozen=True)
class DemoReport:
    """The whole run."""

    framework: str
    model: str
    ingested_chunks: int
    reused_chunks: int
    store_bytes: int
    comparisons: tuple[Comparison, ...]

    def medians(self, of: Callable[[GenerationMetrics], float]) -> tuple[float, float]:
        """Return the median of a figure over the questions, for SamKV and for full prefill."""
        samkv = median(of(comparison.samkv.metrics) for comparison in self.comparisons)
        return samkv, median(of(comparison.full.metrics) for comparison in self.comparisons)

    @property
    def ttft_ratio_median(self) -> float:
        """Median of the questions' time to first token, SamKV ÷ full prefill."""
        return median(comparison.ttft_ratio for comparison in self.comparisons)

    def num_right(self) -> tuple[int, int]:
        """Count the questions that SamKV and full prefill answer right."""
        return sum(c.samkv.correct for c in self.comparisons), sum(c.full.correct for c in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "framework": self.framework,
            "model": self.model,
            "questions": [comparison.to_dict() for comparison in self.comparisons],
            "ttft_ratio_median": self.ttft_ratio_median,
            "ingested_chunks": self.ingested_chunks,
            "reused_chunks": self.reused_chunks,
            "store_bytes": self.store_bytes,
        }
