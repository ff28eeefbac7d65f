"""Records that come one by one: from their put into a topic until a reader has the answer.

``python -m tests.bench trickle``

An engine of its own process serves a small model with the defaults, at least once and exactly once,
at 1, 5, 20 and 50 records a second, evenly spaced: five and a half minutes in all. The same process
puts and reads, so that both ends have one clock; broker, engine and it share the machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from engine.loading.collate import Collate
from engine.types import Batch, Mark
from models.export.model import export
from models.learners.tabular import TabularLearner
from tests.bench.bench_inference import FEATURES, NAMES, data
from tests.bench.measure import report
from tests.broker import Broker, shared_broker

RATES = (1, 5, 20, 50)
WARM = 20
"""Records before the first that counts."""
PATIENCE = 120.0
SERVE = """
name = "trickle"
folder = "{folder}/{name}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{topic}"
[source.schema]
id = "int64"
{schema}
[infer]
model = "{model}"
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{sink}"
columns = ["id"]
{more}
"""
WAYS = {"at least once": "", "exactly once": "exactly_once = true"}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/trickle.json``."""
    broker = shared_broker()
    figures: dict[str, float] = {}
    raw: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-trickle-") as name:
        model = small(Path(name) / "small.onnx")
        for way, more in WAYS.items():
            with serving(broker, Path(name), model, way, more) as stream:
                for rate in RATES:
                    count = max(3, rate // 2) if quick else max(60, rate * 30)
                    seconds = stream.run(count, 1 / rate)
                    raw[f"{way}, {rate}/s"] = seconds
                    for q in (50, 99):
                        key = f"{way}, {rate} records/s: p{q}, ms"
                        figures[key] = float(np.percentile(seconds, q)) * 1e3
    goal = "p50 <= 100 ms, p99 <= 250 ms; exactly once p99 <= 1,500 ms"
    report("trickle", figures, seconds=raw, goal=goal)


def small(path: Path) -> Path:
    """A model of one layer, hardly trained: what it says does not matter here."""
    learner = TabularLearner(
        TabularLearner.Settings(layers=(64,)), TabularLearner.Training(threads=1), FEATURES
    )
    batch = Batch(frame=data(512, seed=0), mark=Mark(), arrived=0.0)
    learner.learn(Collate(FEATURES).apply(batch))
    return export(path, learner, [], {"version": "bench"})


class Stream:
    """Puts records into one topic and waits for their answers in another."""

    def __init__(self, broker: Broker, topic: str, sink: str, value: dict[str, float]) -> None:
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=0)
        self._consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap_servers, isolation_level="read_committed"
        )
        self._consumer.assign([TopicPartition(sink, 0)])
        self._consumer.seek_to_beginning()
        self._topic, self._value = topic, value
        self._put: dict[int, float] = {}
        self._read: dict[int, float] = {}

    def run(self, count: int, pause: float) -> list[float]:
        """So many records, so many seconds apart; the seconds from put to read of each."""
        first = len(self._put)
        feeding = threading.Thread(target=self._feed, args=(first, count, pause))
        feeding.start()
        deadline = time.monotonic() + count * pause + PATIENCE
        while len(self._read) < first + count and time.monotonic() < deadline:
            for records in self._consumer.poll(timeout_ms=1_000).values():
                now = time.perf_counter()
                for record in records:
                    self._read.setdefault(json.loads(record.value)["id"], now)
        feeding.join()
        assert len(self._read) == first + count, f"{len(self._read)} of {first + count} answers"
        return [self._read[i] - self._put[i] for i in range(first, first + count)]

    def close(self) -> None:
        self._producer.close()
        self._consumer.close()

    def _feed(self, first: int, count: int, pause: float) -> None:
        start = time.perf_counter()
        for i in range(count):
            time.sleep(max(0.0, start + i * pause - time.perf_counter()))
            value = json.dumps({"id": first + i, **self._value}).encode()
            self._put[first + i] = time.perf_counter()
            self._producer.send(self._topic, value)


@contextmanager
def serving(broker: Broker, folder: Path, model: Path, way: str, more: str) -> Iterator[Stream]:
    """An engine between two topics, once it has answered."""
    topic, sink = broker.topic(), broker.topic()
    file = folder / f"{way}.toml"
    text = SERVE.format(
        folder=folder, name=way, bootstrap_servers=broker.bootstrap_servers, topic=topic,
        sink=sink, model=model,
        schema="\n".join(f'{column} = "float64"' for column in NAMES), more=more,
    )  # fmt: skip
    file.write_text(text)
    command = [
        sys.executable,
        "-m",
        "engine.commands.cli",
        "run",
        str(file),
        "--log-level",
        "error",
    ]
    engine = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stream = Stream(broker, topic, sink, dict.fromkeys(NAMES, 0.5))
    try:
        stream.run(WARM, 0.05)
        yield stream
    finally:
        engine.terminate()
        engine.wait()
        stream.close()
