"""``make demo-kafka``: a broker, a topic of street sensors, an engine that learns from it and one
that predicts, side by side, and what they came to.

Uses the broker at KAFKA_BOOTSTRAP_SERVERS, or starts one for as long as it runs. What is said
behind it is set in both engines: ``demo.py loader.batch_rows=504``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from rich.console import Console
from rich.live import Live
from rich.table import Table

PIPELINES = Path(__file__).parents[1] / "pipelines"
TRAIN, SERVE = "pedestrians-train-kafka", "pedestrians-serve-kafka"
FROM = datetime(2024, 1, 1, tzinfo=UTC)
"""The predicting engine's answers count from here on; the model has learned what lies before."""
HISTORY_MS = 30 * 24 * 3_600_000
"""What the predicting engine reads before that, for its lags."""
PATIENCE = 600.0
OUTPUT_PREFIXES = {
    "records": "headrace_source_records_total",
    "learned": "headrace_learned_records_total",
    "predicted": "headrace_predicted_records_total",
    "lag": "headrace_source_lag_records",
    "busy": "headrace_record_latency_seconds_sum",
    "batches": "headrace_record_latency_seconds_count",
    "error": 'headrace_quality{metric="mae",window="window"}',
    "baseline": 'headrace_baseline_quality{metric="mae",window="window"}',
}


def main() -> None:
    """All of it; ends by itself."""
    out = Console()
    start = time.monotonic()
    with broker(out) as bootstrap_servers:
        tag = uuid.uuid4().hex[:6]
        topics = {name: f"{name}-{tag}" for name in ("pedestrians", "pedestrians-predicted")}
        admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers)
        admin.create_topics(
            [NewTopic(t, num_partitions=1, replication_factor=1) for t in topics.values()]
        )
        admin.close()
        # One thread each: two engines and a broker share this machine.
        here = {"OMP_NUM_THREADS": "1", **os.environ, "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers}
        source, sink = topics.values()
        both = [f"source.topics={source}", *sys.argv[1:]]
        sets = {
            TRAIN: [*both, f"source.group_id=train-{tag}"],
            SERVE: [*both, f"source.group_id=serve-{tag}", f"sink.topic={sink}"],
        }
        out.print(f"Streaming seven years of street sensors into topic {source} ...")
        headrace(here, "run", "pedestrians-feed", [f"sink.topic={source}"], fresh=True)
        here.pop("HEADRACE_SOURCE__PATH", None)  # the feed's
        cut = offset(bootstrap_servers, source, int(FROM.timestamp() * 1000))
        end = offset(bootstrap_servers, source, None)
        out.print(f"{end:,} records. An engine learns from them; another joins at {FROM:%Y-%m-%d}.")
        engines = {TRAIN: engine(here, TRAIN, sets[TRAIN])}
        rates: dict[str, float] = {}
        try:
            with Live(console=out, refresh_per_second=4) as live:
                watch(
                    live,
                    engines,
                    until=lambda pages: pages[TRAIN].get("records", 0) >= cut,
                    rates=rates,
                )
                # From the newest checkpoint, beside the engine that goes on learning.
                headrace(here, "export", TRAIN, sets[TRAIN], to=f"runs/{TRAIN}/model.onnx")
                begin = int(FROM.timestamp() * 1000) - HISTORY_MS
                engines[SERVE] = engine(here, SERVE, [*sets[SERVE], f"source.start={begin}"])
                there = offset(bootstrap_servers, source, begin)
                watch(live, engines, until=lambda pages: done(pages, end, there), rates=rates)
        finally:
            for process in engines.values():
                process.send_signal(signal.SIGTERM)
            codes = {name: process.wait(PATIENCE) for name, process in engines.items()}
        for name, code in codes.items():
            if code:
                raise SystemExit(f"{name} failed: {log_of(name)[-1]}")
        out.print(summary(bootstrap_servers, sink, rates))
    out.print(
        f"{time.monotonic() - start:.0f} s in all.", f"runs/{TRAIN}", f"runs/{SERVE}", sep="\n"
    )


@contextmanager
def broker(out: Console) -> Iterator[str]:
    """The address of a broker."""
    if there := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield there
        return
    out.print("Starting Apache Kafka ...")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.broker"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "=" not in line:
            raise SystemExit("No broker: Java 17 and Maven are needed, or KAFKA_BOOTSTRAP_SERVERS.")
        yield line.strip().partition("=")[2]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def headrace(here: dict[str, str], command: str, name: str, sets: list[str], *, fresh: bool = False,
             to: str = "") -> None:  # fmt: skip
    """Run a command of headrace's to its end."""
    words = [sys.executable, "-m", "engine.commands.cli", command, str(PIPELINES / f"{name}.toml")]
    words += [word for text in sets for word in ("--set", text)]
    words += ["--fresh"] * fresh + (["--to", to] if to else [])
    done = subprocess.run(words, env=here, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def engine(here: dict[str, str], name: str, sets: list[str]) -> subprocess.Popen[bytes]:
    """A long-lived one, with its log beside what it leaves."""
    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        sys.executable,
        "-m",
        "engine.commands.cli",
        "run",
        str(PIPELINES / f"{name}.toml"),
        "--fresh",
    ]
    sets = [f"service.port={free(PORTS[name])}", *sets]
    words += [word for text in sets for word in ("--set", text)]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(words, env=here, stdout=log, stderr=log)


def free(port: int) -> int:
    """This port, or 0 for any other one."""
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return port
    return 0


def log_of(name: str) -> list[str]:
    """The lines of an engine's log."""
    return (Path("runs") / name / "log.txt").read_text().splitlines()


def url(name: str) -> str | None:
    """Where an engine's page is; None before it is up."""
    lines = [json.loads(line) for line in log_of(name) if line.endswith("}")]
    urls = [line["url"] for line in lines if line["message"] == "service listens"]
    return urls[-1] if urls else None


def offset(bootstrap_servers: str, topic: str, ms: int | None) -> int:
    """The first offset at a time, or the end."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers)
    tp = TopicPartition(topic, 0)
    found = None if ms is None else consumer.offsets_for_times({tp: ms})[tp]
    at: int = consumer.end_offsets([tp])[tp] if found is None else found.offset
    consumer.close()
    return at


ROLES = {TRAIN: "learns", SERVE: "predicts"}
PORTS = {TRAIN: 9108, SERVE: 9109}
"""Where their pages are; elsewhere where these are taken."""


def page(name: str) -> dict[str, float]:
    """An engine's metrics; nothing before it is up."""
    if (address := url(name)) is None:
        return {}
    with suppress(OSError):
        text = urllib.request.urlopen(f"{address}/metrics", timeout=2).read()
        found: dict[str, float] = {}
        for line in text.decode().splitlines():
            series, _, value = line.rpartition(" ")
            for what, prefix in OUTPUT_PREFIXES.items():
                if re.match(
                    re.escape(prefix) + r"($|\{)" if "{" not in prefix else re.escape(prefix),
                    series,
                ):
                    found[what] = found.get(what, 0.0) + float(value)
        return found
    return {}


def watch(live: Live, engines: dict[str, subprocess.Popen[bytes]], *, until, rates) -> None:  # type: ignore[no-untyped-def]
    """Show the engines' pages until it is time."""
    deadline = time.monotonic() + PATIENCE
    first: dict[str, tuple[float, float]] = {}
    while time.monotonic() < deadline:
        pages = {name: page(name) for name in engines}
        for name, found in pages.items():
            rows = found.get("learned", 0) + found.get("predicted", 0)
            now = time.monotonic()
            at, before = first.setdefault(name, (now, rows))
            if rows > before and found.get("lag", 0) > 0:
                rates[name] = (rows - before) / (now - at)
        live.update(table(pages, rates))
        if until(pages):
            return
        for name, process in engines.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended: {log_of(name)[-1]}")
        time.sleep(0.5)  # between two looks
    raise TimeoutError(f"not there after {PATIENCE:.0f} s: {pages}")


def done(pages: dict[str, dict[str, float]], end: int, begin: int) -> bool:
    """Whether both have done all there is; one of them began late."""
    records = {name: found.get("records", 0) for name, found in pages.items()}
    return records[TRAIN] >= end and records[SERVE] >= end - begin


def table(pages: dict[str, dict[str, float]], rates: dict[str, float]) -> Table:
    """What the engines say of themselves."""
    addresses = [f"{ROLES[name]}: {address}" for name in pages if (address := url(name))]
    made = Table(title="live", caption="\n".join(addresses))
    columns = ("engine", "records", "rows", "rows/s", "lag", "latency", "error", "baseline")
    for column in columns:
        made.add_column(column, justify="left" if column == "engine" else "right", no_wrap=True)
    for name, found in pages.items():
        rows = found.get("learned", 0) + found.get("predicted", 0)
        latency = 2 * found.get("busy", 0) / found["batches"] if found.get("batches") else None
        made.add_row(
            ROLES[name], f"{found.get('records', 0):,.0f}", f"{rows:,.0f}",
            f"{rates.get(name, 0):,.0f}",
            f"{found.get('lag', 0):,.0f}", "" if latency is None else f"{1000 * latency:,.0f} ms",
            *(f"{found[k]:.1f}" if k in found else "" for k in ("error", "baseline")),
        )  # fmt: skip
    return made


def summary(bootstrap_servers: str, topic: str, rates: dict[str, float]) -> Table:
    """Mean absolute error of both, beside what learns nothing."""
    report = json.loads(Path(f"runs/{TRAIN}/report.json").read_text())
    part = report["slices"]["2024-2025"]
    answers = predicted(bootstrap_servers, topic)
    frozen = answers.select((pl.col("prediction") - pl.col("count")).abs().mean()).item()
    made = Table(title="mean absolute error over 2024-2025, counts an hour")
    for column in ("what", "rows", "rows/s", "error"):
        made.add_column(column, justify="left" if column == "what" else "right")
    made.add_row(
        "learned hour by hour",
        f"{next(iter(part['baselines'].values()))['rows']:,}",
        f"{rates[TRAIN]:,.0f}",
        f"{part['mae']:.1f}",
    )
    made.add_row(
        "model of 2023, predicting", f"{answers.height:,}", f"{rates[SERVE]:,.0f}", f"{frozen:.1f}"
    )
    for name, found in part["baselines"].items():
        made.add_row(name, f"{found['rows']:,}", "", f"{found['mae']:.1f}")
    return made


def predicted(bootstrap_servers: str, topic: str) -> pl.DataFrame:
    """What a reader of committed records sees, from 2024 on."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest",
        enable_auto_commit=False,
        isolation_level="read_committed", consumer_timeout_ms=3_000, max_poll_records=10_000,
    )  # fmt: skip
    lines = b"\n".join(record.value for record in consumer)
    consumer.close()
    return pl.read_ndjson(lines).filter(pl.col("time") >= FROM.strftime("%Y-%m-%d"))


if __name__ == "__main__":
    main()
