"""OpenTelemetry traces: one span for each request, with a child span for each stage."""

from collections.abc import Mapping
from time import monotonic, time_ns

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.responses import Response

from foveate.gateway.schemas.response import AnswerResponse

STAGES = {
    "decode": "preprocess", "queue": "queue", "compute": "compute", "render": "postprocess",
    "prefill": "prefill", "generate": "generate",
}  # fmt: skip
"""Names of spans, by the stage's name in Server-Timing."""


class Tracing:
    """Creates the spans of a request once it has been answered.

    All times are known by then, and a running request costs nothing.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "foveate"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("foveate")
        self._context = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> "Tracing":
        """Send traces to a collector. endpoint: its OTLP/HTTP URL, as in http://127.0.0.1:4318/v1/traces."""
        return cls(BatchSpanProcessor(OTLPSpanExporter(endpoint)))

    def record(
        self,
        path: str,
        model: str,
        outcome: str,
        arrived: float,
        headers: Mapping[str, str],
        response: Response,
    ) -> None:
        """Record an answered request. arrived: its arrival in seconds of the monotonic clock."""
        now = time_ns()
        span = self._tracer.start_span(
            f"POST {path}",
            self._context.extract(headers),
            kind=SpanKind.SERVER,
            start_time=now - round(1e9 * (monotonic() - arrived)),
            attributes={
                "http.request.method": "POST",
                "http.route": path,
                "http.response.status_code": response.status_code,
                "foveate.model": model,
                "foveate.outcome": outcome,
            },
        )
        if response.status_code >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if isinstance(response, AnswerResponse):
            span.set_attribute("foveate.plan", response.plan)
            if response.quality is not None:
                span.set_attribute("foveate.quality", response.quality)
            parent, stage_end = set_span_in_context(span), now
            for name, seconds in reversed(response.timings_s.items()):
                if name in STAGES:  # stages follow each other, and the last one ends now
                    stage_start = stage_end - round(1e9 * seconds)
                    self._tracer.start_span(STAGES[name], parent, start_time=stage_start).end(stage_end)
                    stage_end = stage_start
        span.end(now)

    def close(self) -> None:
        """Send the remaining spans and stop."""
        self._provider.shutdown()
