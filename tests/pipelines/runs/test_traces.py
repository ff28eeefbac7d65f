"""Traces of whole runs: rows in, spans out; and a collector that is away harms no run."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kafka import KafkaProducer

from connectors.kafka.record_batches import encode_headers
from engine.observing.metrics import Metrics
from engine.observing.traces import MAX_WAITING, Settings, Trace, Traces
from engine.run import Run
from engine.types import Batch, Mark, Records, Values
from tests.broker import Broker
from tests.pipelines.conftest import Headrace, Rows, Small
from tests.pipelines.kafka.test_kafka import broker, consumed, on_kafka

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
__all__ = ["broker", "on_kafka"]  # fixtures
STAGES = ["fetch", "decode", "missing", "standardize", "categories", "collate", "learn", "write"]
SAVING = ["flush", "checkpoint", "commit"]
MESSAGING = [
    "system", "destination.name", "destination.partition.id", "consumer.group.name", "kafka.offset",
    "operation.name",
]  # fmt: skip
ALL = '\n[traces]\nendpoint = "{}"\nsample_rate = 1.0\n'


class Sent:
    """Keeps the traces that are sent, in place of a collector."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.dropped: list[Trace] = []
        self.send, self.drop = self.traces.append, self.dropped.append

    def begin(self) -> str:
        return parent(99)

    def close(self) -> None:
        pass


@contextlib.contextmanager
def collector(answers: bool = True) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A collector on a port of its own: its URL, and the path and request of each call."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    calls: list[tuple[str, Any]] = []
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append((self.path, ExportTraceServiceRequest.FromString(body)))
            if not answers:
                ended.wait()
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", calls
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def file(tmp_path: Path, small: Small, rows: Rows) -> Callable[..., Path]:
    """The small pipeline's file on 1,000 rows, with more behind it."""

    def write(more: str = "", kind: str = "csv") -> Path:
        data = tmp_path / f"rows.{kind}"
        rows().write_csv(data) if kind == "csv" else rows().write_parquet(data)
        return small(data, more=more)

    return write


def spans_of(file: Path, settings: Settings) -> tuple[list[list[Any]], Metrics]:
    """Run a pipeline; return the spans of each trace as OpenTelemetry exports them, root first."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from engine.observing.span_export import SpanExport

    memory, run = InMemorySpanExporter(), Run(file)

    def export() -> SpanExport:
        return SpanExport(settings, name="small", metrics=run.metrics, exporter=memory)

    run.parts.traces = Traces(settings, export, run.parts.traced)
    run.run()
    spans = sorted(memory.get_finished_spans(), key=lambda s: (s.context.trace_id, s.start_time))
    groups = itertools.groupby(spans, lambda span: span.context.trace_id)
    traces = [sorted(group, key=lambda span: span.parent is not None) for _, group in groups]
    return sorted(traces, key=lambda trace: trace[0].attributes["headrace.positions.next"]), (
        run.metrics
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])  # batch by batch, and in groups
def test_every_batch_is_a_trace_from_fetch_to_commit(file: Callable[..., Path], kind: str) -> None:
    traces, metrics = spans_of(file(kind=kind), Settings(sample_rate=1.0))
    roots = [trace[0] for trace in traces]
    assert [root.name for root in roots] == ["batch"] * 10
    assert [root.attributes["messaging.batch.message_count"] for root in roots] == [100] * 10
    assert [root.attributes["headrace.rows.learned"] for root in roots] == [100] * 10
    assert all(root.status.is_unset and root.kind.name == "CONSUMER" for root in roots)
    first, after = ("headrace.positions.first", "headrace.positions.next")
    pairs = itertools.pairwise(roots)
    assert all(a.attributes[after] == b.attributes[first] for a, b in pairs)
    for root, *children in traces:
        assert sorted(span.name for span in children) == sorted([*STAGES, *SAVING])
        assert {span.parent.span_id for span in children} == {root.context.span_id}
        assert all(root.start_time <= s.start_time <= s.end_time <= root.end_time for s in children)
    commits = [next(s.start_time for s in trace if s.name == "commit") for trace in traces]
    assert [len(list(group)) for _, group in itertools.groupby(commits)] == [4, 4, 2]
    assert {root.resource.attributes["service.name"] for root in roots} == {"small"}
    assert dropped(metrics) == 0


def test_the_first_batch_is_traced_whatever_the_share(file: Callable[..., Path]) -> None:
    traces, _ = spans_of(file(kind="parquet"), Settings(sample_rate=1e-12))
    assert [trace[0].attributes["headrace.positions.first"] for trace in traces] == [(0,)]


def test_the_environment_decides_what_has_no_key(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    traces, _ = spans_of(file(), Settings())
    assert len(traces) == 10
    assert {trace[0].resource.attributes["service.name"] for trace in traces} == {"theirs"}
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert spans_of(file(), Settings())[0] == []


def test_without_a_table_nothing_is_heard(file: Callable[..., Path]) -> None:
    run, work = Run(file()), []
    run.loop._watch = lambda _, batch: work.append(batch.work)
    assert run.loop.loader.timer.listener is None
    run.run()
    assert work == [None] * 10


# --------------------------------------------------------------------------------------- collectors


def dropped(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("headrace_dropped_spans_total") or 0.0


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Name and message of what was logged as a warning or worse, whoever did it."""
    return [(r.name, r.getMessage()) for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_collector_gets_the_spans(file: Callable[..., Path]) -> None:
    with collector() as (url, calls):
        run = Run(file(ALL.format(url)))
        run.run()
    assert {path for path, _ in calls} == {"/v1/traces"}
    spans = [
        span
        for _, request in calls
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted({span.name for span in spans}) == sorted(["batch", *STAGES, *SAVING])
    assert len(spans) == 10 * (1 + len(STAGES) + len(SAVING))
    assert dropped(run.metrics) == 0


def test_a_collector_gets_the_spans_over_grpc(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    serve: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    requests: list[Any] = []

    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            requests.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    serve(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    try:
        run = Run(file(ALL.format(f"http://127.0.0.1:{port}")))
        run.run()
    finally:
        server.stop(None).wait()
    spans = [
        span.name
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert sorted(spans) == sorted(["batch", *STAGES, *SAVING] * 10)
    assert dropped(run.metrics) == 0


def test_the_environment_bounds_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that does not answer yet: two traces of eleven spans do not fit into twenty."""
    from opentelemetry.sdk.trace.export import SpanExportResult

    from engine.observing.span_export import SpanExport

    class Collector:
        answers = threading.Event()

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            self.answers.wait()
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None: ...

    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5")
    metrics, sink = Metrics(), Collector()
    export = SpanExport(Settings(sample_rate=1.0), name="p", metrics=metrics, exporter=sink)
    work = [(f"stage {i}", 1.0, 0.5) for i in range(10)]
    export.send(Trace(start=1.0, work=work, end=2.0, traceparent=export.begin()))
    assert dropped(metrics) == 0
    export.send(Trace(start=1.0, work=work, end=2.0, traceparent=export.begin()))
    assert dropped(metrics) == 11
    sink.answers.set()
    export.close()
    assert dropped(metrics) == 11


def test_a_collector_that_is_away_costs_spans_and_one_warning(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    run = Run(file(ALL.format(f"http://127.0.0.1:{port}")))
    assert run.run().totals.learned == 1_000
    assert dropped(run.metrics) == 10 * (1 + len(STAGES) + len(SAVING))
    assert warnings_of(caplog) == [("headrace.traces", "spans are dropped; the run goes on")]


def test_a_collector_that_hangs_does_not_hold_the_end(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.observing.span_export.STOP_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with collector(answers=False) as (url, _):
        run = Run(file(ALL.format(url)))
        assert run.run().totals.learned == 1_000
    assert dropped(run.metrics) == 10 * (1 + len(STAGES) + len(SAVING))
    assert warnings_of(caplog) == [("headrace.traces", "spans are dropped; the run goes on")]


# ------------------------------------------------------------------------------------------- traces


def records(partition: str, first: int, headers: Sequence[Sequence[tuple[str, str]]]) -> Records:
    """Records of a topic, each with its headers."""
    parts = [
        encode_headers(1, [(name, value.encode()) for name, value in own], {}) for own in headers
    ]
    data = np.concatenate([part.data for part in parts])
    bounds = np.cumsum([0, *(part.nbytes for part in parts)])
    n = len(headers)
    return Records(
        partition=partition,
        positions=np.arange(first, first + n),
        next=first + n,
        values=pl.DataFrame({"a": np.zeros(n)}),
        arrived=1.0,
        headers=Values(data=data, bounds=bounds),
    )


def batch_of(*pieces: Records) -> Batch:
    rows = sum(map(len, pieces))
    return Batch(
        frame=pl.DataFrame(), mark=Mark(), arrived=1.0, raw_rows=rows, pieces=pieces, work=()
    )


def parent(n: int) -> str:
    return f"00-{n:032x}-{n:016x}-01"


def test_a_trace_links_to_the_producers_of_its_records() -> None:
    own = [[("traceparent", parent(n))] for n in (1, 2, 2, 3, 4)]
    other = [[("a", "b"), ("traceparent", parent(5))], [("traceparent", "none")], []]
    batch = batch_of(records("views/0", 7, own), records("views/1", 0, other))
    sent = Sent()
    traces = Traces(Settings(max_links=4), lambda: sent, lambda: {"messaging.system": "kafka"})
    with traces.opened():
        with traces.following(batch) as trace:
            assert trace is not None
            trace.add_rows({"cleaned": 8})
        traces.committed([])
    assert [trace.links for trace in sent.traces] == [tuple(map(parent, (1, 2, 3, 4)))]
    assert sent.traces[0].attributes == {
        "messaging.system": "kafka",
        "messaging.batch.message_count": 8,
        "messaging.destination.name": "views",
        "headrace.partitions": ["views/0", "views/1"],
        "headrace.positions.first": [7, 0],
        "headrace.positions.next": [12, 3],
        "headrace.rows.cleaned": 8,
    }


def test_a_batch_of_a_topic_links_to_its_producers(
    rows: Rows, broker: Broker, on_kafka: Callable[..., Path]
) -> None:
    topic = broker.topic()
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for n, line in enumerate(rows(100).write_ndjson().splitlines()):
        headers = [("a", b"b"), ("traceparent", parent(n).encode())] if n in (3, 50) else []
        producer.send(topic, line.encode(), headers=headers, partition=0)
    producer.close()
    traces, _ = spans_of(on_kafka(topic), Settings(sample_rate=1.0))
    roots = [trace[0] for trace in traces]
    assert [link.context.span_id for root in roots for link in root.links] == [3, 50]
    assert [root.attributes["headrace.positions.next"] for root in roots] == [(100,)]
    where = {name: roots[0].attributes.get(f"messaging.{name}") for name in MESSAGING}
    assert where == dict(zip(MESSAGING, ["kafka", topic, "0", topic, 0, "process"], strict=True))


def test_rows_of_a_topic_carry_the_trace_of_their_batch(
    file: Callable[..., Path], broker: Broker
) -> None:
    """The span of the batch: a reader of its rows links to it. Rows of other batches have none."""
    to, path = broker.topic(), file(kind="parquet")
    text = path.read_text()
    start, end, sink = (text.index(f"[{name}]") for name in ("model", "checkpoint", "sink"))
    text = text[:start] + text[end:sink]
    text += f'[sink]\nkind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\n'
    path.write_text(f'{text}topic = "{to}"\n')
    ((root, *_),), _ = spans_of(path, Settings(sample_rate=1e-12))
    context, (rows_in,) = root.context, root.attributes["headrace.positions.next"]
    wanted = f"00-{context.trace_id:032x}-{context.span_id:016x}-01".encode()
    told = {
        int(headers["headrace.offset"]): headers.get("traceparent")
        for headers in (dict(record.headers) for record in consumed(broker, to))
    }
    assert 0 < rows_in < len(told) == 1_000
    assert told == {n: wanted if n < rows_in else None for n in range(1_000)}


def test_what_does_not_count_is_a_failed_trace() -> None:
    sent = Sent()
    traces = Traces(Settings(), lambda: sent)
    batches = [batch_of(records("t/0", n, [[]])) for n in range(4)]

    def fail() -> None:
        raise RuntimeError("with a value of a row")

    def follow(batch: Batch, work: Callable[[], None] = lambda: None) -> None:
        with traces.following(batch):
            work()

    with traces.opened():
        follow(batches[0])
        traces.undone("rolled back")
        follow(batches[1])
        traces.committed([("commit", 2.0, 1.0)])
        follow(batches[2])
        with pytest.raises(RuntimeError):
            follow(batches[3], fail)
    assert [(trace.error, list(trace.spans())) for trace in sent.traces] == [
        ("rolled back", []),
        ("", ["commit"]),
        ("not committed", []),
        ("RuntimeError", []),
    ]


def test_no_more_traces_wait_for_a_commit_than_may() -> None:
    sent = Sent()
    traces = Traces(Settings(), lambda: sent)
    with traces.opened():
        for n in range(MAX_WAITING + 2):
            with traces.following(batch_of(records("t/0", n, [[]]))):
                pass
        traces.committed([])
    assert (len(sent.traces), len(sent.dropped)) == (MAX_WAITING, 2)


# -------------------------------------------------------------------------------------------- check


@pytest.mark.parametrize(
    ("table", "variable", "sentence"),
    [
        ('endpoint = "localhost:4318"', None,
         'expected a URL such as "http://localhost:4318" for \'endpoint\', got "localhost:4318".'),
        ("", ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
         "The environment's OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL such as "
         "\"http://localhost:4318\", got 'collector'."),
        ("", ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
         "The environment's OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf or grpc, got "
         "'http/json'."),
        ("", ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
         "The environment's OTEL_BSP_SCHEDULE_DELAY: expected a whole number above 0, got '5s'."),
        ("", ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10000"),
         "[traces] cannot be set up: max_export_batch_size must be less than or equal to "
         "max_queue_size: change that OTEL_* variable of the environment."),
    ],
)  # fmt: skip
def test_check_says_what_cannot_be_sent(
    headrace: Headrace,
    file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    variable: tuple[str, str] | None,
    sentence: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv(*variable)
    code, out, err = headrace("check", file(f"\n[traces]\n{table}\n"))
    assert code == 2
    assert sentence in " ".join((out + err).split())


def test_check_says_that_the_extra_of_grpc_is_missing(
    headrace: Headrace, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    code, out, err = headrace("check", file("\n[traces]\n"))
    assert code == 2
    said = " ".join((out + err).split())
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'grpc' needs the package opentelemetry-" in said
    assert "pip install 'headrace[traces-grpc]'" in said


def test_check_says_that_the_extra_is_missing(
    headrace: Headrace, file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "engine.observing.span_export", raising=False)
    code, out, err = headrace("check", file("\n[traces]\n"))
    assert code == 2
    assert "pip install 'headrace[traces]'" in " ".join((out + err).split())
