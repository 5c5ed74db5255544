"""A span for every answer, by OpenTelemetry's conventions for generative AI, where its SDK is installed and set up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from samkv_rag import GenerationResult

try:
    from opentelemetry import trace
except ImportError:  # answering needs none of it
    _tracer: Any = None
else:
    _tracer = trace.get_tracer("samkv_apps.serve")  # of no effect until the process sets up an exporter


class Span:
    """What is noted of one answer; it never holds texts."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def finish(self, result: GenerationResult) -> None:
        """Note how the answer ended."""
        if self._span is None:
            return
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": [result.finish_reason],
                "gen_ai.usage.input_tokens": result.metrics.prompt_tokens,
                "gen_ai.usage.output_tokens": result.metrics.completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": result.metrics.tokens_reused,
                "gen_ai.response.time_to_first_chunk": result.metrics.ttft_s,
            }
        )


@contextmanager
def span(operation: str, model: str) -> Iterator[Span]:
    """A span around an answer; one that fails is marked so."""
    if _tracer is None:
        yield Span(None)
        return
    # Not the current span: an answer is written across the tasks that read it.
    started = _tracer.start_span(f"{operation} {model}", kind=trace.SpanKind.SERVER)
    started.set_attributes({"gen_ai.operation.name": operation, "gen_ai.request.model": model})
    try:
        yield Span(started)
    except BaseException as error:
        started.set_attribute("error.type", type(error).__name__)
        started.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        started.end()
