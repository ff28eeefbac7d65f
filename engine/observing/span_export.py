"""Sends traces as OpenTelemetry spans; imported only where there are traces (the only import of
opentelemetry).

A collector that hangs or is away costs the run nothing: spans wait in a bounded queue that another
thread empties. What does not fit, is refused or is left at the end is counted, and logged once.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags

from engine.observing.metrics import Metrics
from engine.observing.traces import GRPC, Settings, Trace, protocol

log = logging.getLogger("headrace.traces")
MAX_QUEUED = 4_096
"""The most spans that wait to be sent, unless OTEL_BSP_MAX_QUEUE_SIZE says so."""
STOP_SECONDS = 5.0
"""The most seconds that the end of a run waits for them."""

ROOT = "batch"
CLOCK_SECONDS = 0.01
"""The most seconds that the times of spans may differ from the system's clock, which may be set."""


class _Ids(IdGenerator):
    """Random ids, but for a root span those that its `traceparent` has told before."""

    def __init__(self) -> None:
        self._rng = random.SystemRandom()  # users seed the shared one
        self._told: tuple[int, int] | None = None

    def tell(self, traceparent: str) -> None:
        """Give the next root span the ids of a `traceparent`."""
        _, trace_id, span_id, _ = traceparent.split("-")
        self._told = int(trace_id, 16), int(span_id, 16)

    def generate_trace_id(self) -> int:
        return self._told[0] if self._told else self._rng.getrandbits(128) or 1

    def generate_span_id(self) -> int:
        told, self._told = self._told, None
        return told[1] if told else self._rng.getrandbits(64) or 1

    def is_trace_id_random(self) -> bool:
        return True


class SpanExport:
    """Makes spans of traces, and sends them; see `engine.observing.traces.Export`.

    Args:
        name: the pipeline's.
        exporter: OpenTelemetry's; one for OTLP unless given.
    """

    def __init__(
        self, settings: Settings, *, name: str, metrics: Metrics, exporter: Any = None
    ) -> None:
        self._metrics = metrics
        self._queued = 0
        self._lock = threading.Lock()
        self._warned = self._closed = False
        self._reason = ""
        self._wall = 0.0
        make, logger = otlp()
        self._exporter = exporter or make(endpoint=_endpoint(settings))
        self._capacity = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") or MAX_QUEUED)
        self._logger = logging.getLogger(logger)
        self._logger.addFilter(self._hear)
        self._ids = _Ids()
        self._provider = TracerProvider(
            id_generator=self._ids,
            sampler=None if settings.sample_rate is None else ALWAYS_ON,  # None: the environment's
            resource=Resource.create(_service(settings, name)),
            shutdown_on_exit=False,
        )
        itself: Any = self  # an exporter by its methods, wherever OpenTelemetry is installed
        queue = BatchSpanProcessor(itself, max_queue_size=self._capacity)
        self._provider.add_span_processor(queue)
        self._tracer = self._provider.get_tracer("headrace", version("headrace"))

    def begin(self) -> str:
        """Return the `traceparent` of a new trace; "" if the environment's sampler leaves it
        out."""
        trace_id, span_id = self._ids.generate_trace_id(), self._ids.generate_span_id()
        result = self._provider.sampler.should_sample(
            Context(), trace_id, ROOT, kind=SpanKind.CONSUMER
        )
        kept = result.decision is Decision.RECORD_AND_SAMPLE
        return f"00-{trace_id:032x}-{span_id:016x}-01" if kept else ""

    def send(self, trace: Trace) -> None:
        """Queue the spans of a trace."""
        if not trace.traceparent:  # by the environment's sampler
            return
        spans = trace.spans()
        if self._queued + len(spans) >= self._capacity:
            self.drop(trace)
            return
        wall = time.time() - time.perf_counter()
        if abs(wall - self._wall) > CLOCK_SECONDS:
            self._wall = wall

        def at(seconds: float) -> int:
            return int((seconds + self._wall) * 1e9)

        operation = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
        known = operation if "messaging.system" in trace.attributes else {}
        self._ids.tell(trace.traceparent)
        root = self._tracer.start_span(
            ROOT,
            Context(),  # what a program that embeds the run traces itself is not its parent
            kind=SpanKind.CONSUMER,
            attributes={**trace.attributes, **known},
            links=[link for text in trace.links if (link := _link(text)).context.is_valid],
            start_time=at(trace.start),
        )
        if not root.is_recording():  # OTEL_SDK_DISABLED, or a sampler that does not keep its word
            return
        with self._lock:
            self._queued += len(spans) + 1
        inside = otel.set_span_in_context(root, Context())
        for stage, (start, end) in spans.items():
            self._tracer.start_span(stage, inside, start_time=at(start)).end(at(end))
        if trace.error:
            root.set_status(StatusCode.ERROR, trace.error)
            root.set_attribute("error.type", trace.error)
        root.end(at(trace.end))

    def drop(self, trace: Trace) -> None:
        """Count the spans of a trace that is not sent."""
        self._dropped(len(trace.spans()) + 1, "there are more than can be sent")

    def close(self) -> None:
        """Send what is queued; give up after `STOP_SECONDS`."""
        stopping = threading.Thread(
            target=self._provider.shutdown, name="headrace-traces", daemon=True
        )
        stopping.start()
        stopping.join(STOP_SECONDS)
        if not stopping.is_alive():
            self._logger.removeFilter(self._hear)
        with self._lock:
            left, self._queued, self._closed = self._queued, 0, True
        if left:
            self._dropped(left, "the run ended before they were sent")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans, on the thread of the queue."""
        sent = False
        try:
            sent = self._exporter.export(spans) is SpanExportResult.SUCCESS
        finally:
            self._handled(len(spans), sent)
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Close the exporter."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: it holds no spans."""
        return True

    def _handled(self, spans: int, sent: bool) -> None:
        with self._lock:
            if self._closed:  # they are counted
                return
            self._queued -= spans
        if not sent:
            self._dropped(spans, self._reason or "the collector does not take them")

    def _dropped(self, spans: int, reason: str) -> None:
        self._metrics.dropped_spans.inc(spans)
        if not self._warned:
            self._warned = True
            log.warning("spans are dropped; the run goes on", extra={"reason": reason})

    def _hear(self, record: logging.LogRecord) -> bool:
        """Keep what the exporter says of a failure for the one warning, in place of a line for
        each."""
        self._reason = record.getMessage()
        return False


def otlp() -> tuple[Callable[..., Any], str]:
    """Return what makes the exporter of the environment's protocol, and the name of its logger.

    Raises: ImportError if it is not installed.
    """
    if protocol() != GRPC:
        return trace_exporter.OTLPSpanExporter, trace_exporter.__name__
    from opentelemetry.exporter.otlp.proto.grpc import exporter
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_exporter

    return grpc_exporter.OTLPSpanExporter, exporter.__name__


def _endpoint(settings: Settings) -> str | None:
    """Return the URL for spans; None leaves it to the environment."""
    url = settings.endpoint
    if url is None or urlsplit(url).path.strip("/") or protocol() == GRPC:
        return url
    return url.rstrip("/") + "/v1/traces"


def _service(settings: Settings, name: str) -> dict[str, str]:
    """Return the resource's attributes that the environment does not set."""
    named = settings.service_name
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    in_attributes = any(part.partition("=")[0].strip() == SERVICE_NAME for part in given)
    if named is None and (os.environ.get("OTEL_SERVICE_NAME") or in_attributes):
        return {}
    return {SERVICE_NAME: named or name}


def _link(traceparent: str) -> Link:
    _, trace_id, span_id, flags = traceparent.split("-")
    context = SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )
    return Link(context)


__all__ = ["SpanExport", "otlp"]
