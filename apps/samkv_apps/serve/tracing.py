"""A span per answer, by OpenTelemetry's conventions for generative AI, if its SDK is installed and set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from samkv_rag import GenerationResult

try:
    from opentelemetry import trace
except ImportError:  # tracing is optional
    _tracer: Any = None
else:
    _tracer = trace.get_tracer("samkv_apps.serve")  # has no effect until the process sets up an exporter


@contextmanager
def span(operation: str, model: str) -> Iterator[Callable[[GenerationResult], None]]:
    """Trace an answer, or its error; yield a function that records the result. A span never contains texts."""
    if _tracer is None:
        yield lambda result: None
        return
    # Not the current span, since several tasks read an answer.
    started = _tracer.start_span(f"{operation} {model}", kind=trace.SpanKind.SERVER)
    started.set_attributes({"gen_ai.operation.name": operation, "gen_ai.request.model": model})

    def finish(result: GenerationResult) -> None:
        started.set_attributes(
            {
                "gen_ai.response.finish_reasons": [one.finish_reason for one in (result, *result.others)],
                "gen_ai.usage.input_tokens": result.metrics.prompt_tokens,
                "gen_ai.usage.output_tokens": result.num_written_tokens,
                "gen_ai.usage.cache_read.input_tokens": result.metrics.tokens_reused,
                "gen_ai.response.time_to_first_chunk": result.metrics.ttft_s,
            }
        )

    try:
        yield finish
    except BaseException as error:
        started.set_attribute("error.type", type(error).__name__)
        started.set_status(trace.StatusCode.ERROR)
        raise
    finally:
        started.end()
