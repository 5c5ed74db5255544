"""Metrics for Prometheus. None depends on a request's texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from samkv_rag import GenerationResult, IngestionReport

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)
_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1)


class Metrics:
    """The metrics of one server.

    Args:
        num_waiting: requests without a first token yet.
        num_running: answers being generated.
        num_evicted: chunks evicted so far.
    """

    def __init__(
        self, num_waiting: Callable[[], int], num_running: Callable[[], int], num_evicted: Callable[[], int]
    ) -> None:
        self._registry = registry = CollectorRegistry()  # not the global one: a process may have several servers
        Gauge("samkv_waiting", "Requests without a first token yet", registry=registry).set_function(num_waiting)
        Gauge("samkv_running", "Answers being generated", registry=registry).set_function(num_running)
        registry.register(_Evictions(num_evicted))

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"samkv_{name}", meaning, labels, registry=registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"samkv_{name}", meaning, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests answered", "route", "status")
        self._ttft = histogram("ttft_seconds", "Seconds from a request to its first token", _SECONDS)
        self._total = histogram("answer_seconds", "Seconds from a request to its last token", _SECONDS)
        self._rate = histogram("decode_tokens_per_second", "Tokens per second of one answer", _RATES)
        self._retained = histogram("retained_ratio", "Chunk tokens retained ÷ chunk tokens", _SHARES)
        self._recomputed = histogram("recomputed_ratio", "Chunk tokens recomputed ÷ chunk tokens", _SHARES)
        self._tokens = counter("tokens", "Tokens of prompts, of prompts' reused parts, and of answers", "kind")
        self._chunks = counter("chunks", "Chunks in prompts: KV in the store (hit) or not (miss)", "result")
        self._kv = counter("kv_bytes", "Size of the prompts' KV, as used and as with full prefill", "kind")
        self._bytes_read = counter("bytes_read", "Bytes read of stored chunks")
        self._refresh_s = counter("refresh_seconds", "Seconds of selecting again while answers were written")
        self._fallbacks = counter("fallbacks", "Prompts that fell back to full prefill")
        self._ingested = counter("ingested_chunks", "Chunks ingested, by result", "result")

    def count_request(self, route: str, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()

    def count_answer(self, result: GenerationResult) -> None:
        """Count a complete answer, or several from one prefill."""
        metrics = result.metrics
        self._ttft.observe(metrics.ttft_s)
        self._total.observe(metrics.total_s)
        if metrics.decode_tokens_per_s:
            self._rate.observe(metrics.decode_tokens_per_s)
        if metrics.chunk_tokens:
            self._retained.observe(metrics.sequence_ratio)
            self._recomputed.observe(metrics.recompute_ratio)
        self._tokens.labels("prompt").inc(metrics.prompt_tokens)
        self._tokens.labels("reused").inc(metrics.tokens_reused)
        self._tokens.labels("completion").inc(result.num_written_tokens)
        self._chunks.labels("hit").inc(metrics.chunks_hit)
        self._chunks.labels("miss").inc(metrics.chunks_missed)
        self._kv.labels("resident").inc(metrics.kv_bytes_resident)
        self._kv.labels("full").inc(metrics.kv_bytes_full)
        self._bytes_read.inc(metrics.bytes_read + metrics.refresh_bytes_read)
        self._refresh_s.inc(metrics.refresh_s)
        if metrics.fallback_reason is not None:
            self._fallbacks.inc()

    def count_ingestion(self, report: IngestionReport) -> None:
        """Count ingested documents."""
        self._ingested.labels("added").inc(report.num_added)
        self._ingested.labels("reused").inc(report.num_reused)
        self._ingested.labels("skipped").inc(report.num_skipped)

    def response(self) -> Response:
        """Return all metrics in Prometheus' format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


class _Evictions(Collector):
    """A counter that reads its value from a function."""

    def __init__(self, num_evicted: Callable[[], int]) -> None:
        self._num_evicted = num_evicted

    def collect(self) -> Iterator[Metric]:
        meaning = "Chunks evicted to stay within the budgets of memory and disk"
        yield CounterMetricFamily("samkv_evictions", meaning, value=self._num_evicted())
