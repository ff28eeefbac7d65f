"""Traces: what was done with a sample of the batches, from fetch to commit.

    StageTimer --(stage, start, seconds)--> Traces --Trace--> SpanExport --OTLP--> a collector

1. `heard` collects the work of a thread, as the timer tells it.
2. The loader gives a sampled batch the work of its preparation: it rides on the batch.
3. The loop adds its own (`following`), and the trace waits for the commit of its rows.
4. A commit adds flush, checkpoint and commit to every trace that waits, and ends them.

Only here is a trace made of the work; only `engine.observing.span_export` knows OpenTelemetry.
Without a ``[traces]`` table nothing is heard, and no batch has a trace.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import get_ident
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from engine import types
from engine.types import Batch, Name, TimedWork, UserError
from engine.types.changes import Free

Attribute = str | int | Sequence[str] | Sequence[int]
SAMPLE_RATE = 0.01
"""The share of batches that are traced, unless the file or the environment says otherwise."""
MAX_WAITING = 256
"""The most traces that wait for a commit; what is sampled beyond them is dropped, and counted."""
MAX_PARTITIONS = 32
"""The most partitions whose positions a trace tells."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HTTP, GRPC = "http/protobuf", "grpc"
BATCHING = (
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_EXPORT_TIMEOUT",
)
URL = 'a URL such as "http://localhost:4318"'
TRACEPARENT = re.compile(
    rb"traceparent.{1,2}?((?!ff)[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})", re.DOTALL
)
"""W3C's header in the bytes of a record's headers: name, length of the value, value."""


class Settings(types.Settings):
    """``[traces]``: OpenTelemetry spans of a sample of the batches, sent by OTLP over HTTP, or over
    gRPC where OTEL_EXPORTER_OTLP_PROTOCOL says so; needs ``pip install 'headrace[traces]'``, or
    ``'headrace[traces-grpc]'``. What has no key here, such as headers and certificates, is set by
    the standard ``OTEL_*`` variables.

    Attributes:
        endpoint: the collector ("http://localhost:4318"), to which `/v1/traces` is added for HTTP
            if it has no path. Unless given, that of OTEL_EXPORTER_OTLP_ENDPOINT, or port 4318 of
            this machine (4317 for gRPC).
        sample_rate [share]: share (0-1) of batches that are traced; the first one always is. Unless
            given, OTEL_TRACES_SAMPLER decides, or it is 0.01.
        service_name: unless given, that of OTEL_SERVICE_NAME, or the pipeline's name.
        max_links: the most producers whose spans a trace links to, by the `traceparent` headers of
            its records.
    """

    endpoint: Free[Name | None] = None
    sample_rate: Free[float | None] = Field(None, gt=0, le=1)
    service_name: Free[Name | None] = None
    max_links: Free[int] = Field(16, ge=0, le=128)

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        if value is not None and not _is_url(value):
            raise ValueError(f"expected {URL}")
        return value


@dataclass(slots=True, kw_only=True)
class Trace:
    """The way of a batch.

    Attributes:
        start: `time.perf_counter` seconds when its oldest record was there.
        work: in the order of its end.
        attributes: by OpenTelemetry's names where there are any, and headrace's own.
        links: the `traceparent` of producers.
        traceparent: its own, which the rows written of it carry; "" where it is not sent.
        error: what went wrong, in a few words; "" if nothing did.
        end: `time.perf_counter` seconds when its rows were committed; 0 before.
    """

    start: float
    work: list[TimedWork]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    links: tuple[str, ...] = ()
    traceparent: str = ""
    error: str = ""
    end: float = 0.0

    def add_rows(self, outcomes: Mapping[str, int]) -> None:
        """Add what became of the rows: outcome -> rows."""
        self.attributes |= {f"headrace.rows.{name}": rows for name, rows in outcomes.items()}

    def spans(self) -> dict[str, tuple[float, float]]:
        """Return stage -> its start and end. What a stage did in several pieces, as where batches
        are prepared together, is one."""
        spans: dict[str, tuple[float, float]] = {}
        for stage, start, seconds in self.work:
            first, last = spans.get(stage, (start, start))
            spans[stage] = min(first, start), max(last, start + seconds)
        return spans


class Export(Protocol):
    """Sends traces. No method waits for the network but `close`, which gives up soon."""

    def begin(self) -> str:
        """Return the `traceparent` of a new trace; "" if the environment's sampler leaves it
        out."""
        ...

    def send(self, trace: Trace) -> None: ...

    def drop(self, trace: Trace) -> None:
        """Count the spans of a trace that is not sent."""
        ...

    def close(self) -> None: ...


NOTHING_HEARD: AbstractContextManager[list[TimedWork]] = nullcontext([])
NOT_TRACED = nullcontext(None)
"""Without traces a batch costs no more than entering these."""


class Traces:
    """Traces a sample of the batches.

    Args:
        settings: None traces nothing.
        export: opens what sends them.
        describe: attributes that all batches have now, such as the model's version.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        export: Callable[[], Export] | None = None,
        describe: Callable[[], Mapping[str, Attribute]] = dict,
    ) -> None:
        self._settings = settings or Settings()
        self._make_export = export
        self._export: Export | None = None
        self._describe = describe
        self._heard: dict[int, list[TimedWork]] = {}
        self._waiting: list[Trace] = []
        self._rng = random.Random()  # of its own: users seed the shared one
        self._rate = self._settings.sample_rate or (1.0 if _env_samples() else SAMPLE_RATE)
        self._begun = False

    @property
    def enabled(self) -> bool:
        """Whether there is a [traces] table."""
        return self._make_export is not None

    def __call__(self, stage: str, start: float, wall: float) -> None:
        """Hear of a piece of work; see `engine.observing.timing.Listener`."""
        heard = self._heard.get(get_ident())
        if heard is not None:
            heard.append((stage, start, wall))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Send traces while the block runs. At its end, those whose rows are not committed are
        sent as failed.

        Raises: UserError if the environment has a value that OpenTelemetry does not take.
        """
        if self._make_export is None:
            yield
            return
        try:
            self._export = self._make_export()
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise UserError(
                f"[traces] cannot be set up: {reason}: change that OTEL_* variable of the "
                "environment."
            ) from error
        try:
            yield
        finally:
            self.undone("not committed")
            self._export.close()
            self._export = None

    def heard(self) -> AbstractContextManager[list[TimedWork]]:
        """Collect what this thread does in the block; blocks do not nest."""
        return self._hear() if self.enabled else NOTHING_HEARD

    def sampled(
        self, batch: Batch, work: Sequence[TimedWork], own: Sequence[TimedWork]
    ) -> tuple[TimedWork, ...] | None:
        """Return the work that prepared a batch, if it is to be traced; else None.

        Args:
            work: of all batches that were prepared with it.
            own: its own.
        """
        if self._export is None or not batch.raw_rows:
            return None
        if self._begun and self._rng.random() >= self._rate:
            return None
        self._begun = True
        return (*work, *own)

    def following(self, batch: Batch) -> AbstractContextManager[Trace | None]:
        """Add the work in the block to the trace of a batch, which then waits for a commit; None
        if the batch is not traced."""
        return NOT_TRACED if batch.work is None else self._follow(batch, batch.work)

    def committed(self, work: Sequence[TimedWork]) -> None:
        """End the traces that wait: what they did is committed by this work."""
        for trace in self._waiting:
            trace.work += work
        self._end()

    def undone(self, error: str) -> None:
        """End the traces that wait: what they did does not count."""
        for trace in self._waiting:
            trace.error = trace.error or error
        self._end()

    @contextmanager
    def _hear(self) -> Iterator[list[TimedWork]]:
        work: list[TimedWork] = []
        self._heard[get_ident()] = work
        try:
            yield work
        finally:
            del self._heard[get_ident()]

    @contextmanager
    def _follow(self, batch: Batch, work: Sequence[TimedWork]) -> Iterator[Trace]:
        trace = Trace(start=batch.arrived, work=list(work))
        if batch.cut > batch.arrived:
            trace.work.insert(0, ("fetch", batch.arrived, batch.cut - batch.arrived))
        trace.attributes = {**self._describe(), "messaging.batch.message_count": batch.raw_rows}
        trace.attributes |= _positions(batch, trace.attributes)
        trace.links = _producers(batch, self._settings.max_links)
        trace.traceparent = "" if self._export is None else self._export.begin()
        try:
            with self._hear() as more:
                yield trace
        except BaseException as error:
            trace.error = type(error).__name__
            raise
        finally:
            trace.work += more
            self._wait(trace)

    def _wait(self, trace: Trace) -> None:
        if self._export is not None and len(self._waiting) >= MAX_WAITING:
            self._export.drop(trace)
            return
        self._waiting.append(trace)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for trace in waiting:
            trace.end = time.perf_counter()
            if self._export is not None:
                self._export.send(trace)


def require_exportable(settings: Settings) -> None:
    """Check what sending spans needs. Raises: UserError"""
    try:
        import engine.observing.span_export  # only where there are traces
    except ImportError:
        raise UserError(
            "[traces] needs the packages opentelemetry-sdk and opentelemetry-exporter-otlp-proto-"
            "http, which are not installed: pip install 'headrace[traces]', or take the table out."
        ) from None
    name, found = _protocol()
    if found == GRPC:
        try:
            engine.observing.span_export.otlp()
        except ImportError:
            raise UserError(
                f"The environment's {name}: '{GRPC}' needs the package opentelemetry-exporter-otlp-"
                "proto-grpc, which is not installed: pip install 'headrace[traces-grpc]', or set "
                f"'{HTTP}' and send to the collector's port for HTTP, 4318 unless changed."
            ) from None
    elif found != HTTP:
        raise UserError(f"The environment's {name}: expected {HTTP} or {GRPC}, got '{found}'.")
    for name in () if settings.endpoint or found == GRPC else ENDPOINTS:
        if (url := os.environ.get(name)) and not _is_url(url):
            raise UserError(f"The environment's {name}: expected {URL}, got '{url}'.")
    for name in BATCHING:
        if (size := os.environ.get(name)) and not (size.isdecimal() and int(size)):
            raise UserError(
                f"The environment's {name}: expected a whole number above 0, got '{size}'."
            )


def protocol() -> str:
    """Return how spans are sent: `HTTP` or `GRPC`."""
    return _protocol()[1]


def _protocol() -> tuple[str, str]:
    """Return the protocol after the variable that says it."""
    given = ((name, os.environ[name]) for name in PROTOCOLS if os.environ.get(name))
    return next(given, (PROTOCOLS[-1], HTTP))


def _env_samples() -> bool:
    return bool(os.environ.get("OTEL_TRACES_SAMPLER"))


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname)


def _positions(batch: Batch, known: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return which rows they are; by the names for messages too, where a broker gave them."""
    ranges: dict[str, tuple[int, int]] = {}
    for piece in batch.pieces:
        first, _ = ranges.get(piece.partition, (piece.mark_position(0), 0))
        ranges[piece.partition] = first, piece.next
    names = list(ranges)[:MAX_PARTITIONS]
    positions: dict[str, Attribute] = {
        "headrace.partitions": names,
        "headrace.positions.first": [ranges[name][0] for name in names],
        "headrace.positions.next": [ranges[name][1] for name in names],
    }
    if "messaging.system" not in known:
        return positions
    parts = [name.rpartition("/") for name in ranges]
    if len({topic for topic, *_ in parts}) == 1:
        positions["messaging.destination.name"] = parts[0][0]
    if len(parts) == 1:
        positions["messaging.destination.partition.id"] = parts[0][2]
        positions["messaging.kafka.offset"] = ranges[names[0]][0]
    return positions


def _producers(batch: Batch, most: int) -> tuple[str, ...]:
    """Return the first different `traceparent` of the records' headers."""
    found: dict[str, None] = {}
    for piece in batch.pieces:
        if piece.headers is None:
            continue
        bounds = piece.headers.bounds
        for match in TRACEPARENT.finditer(piece.headers.data[bounds[0] : bounds[-1]].data):
            if len(found) >= most:
                return tuple(found)
            found[match[1].decode()] = None
    return tuple(found)


__all__ = ["GRPC", "Export", "Settings", "Trace", "Traces", "protocol", "require_exportable"]
