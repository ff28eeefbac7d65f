"""Records through a process between two topics: what a benchmark puts in and reads back.

The same process puts and reads, so that both ends have one clock; broker, process and it share the
machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from tests.broker import Broker
from tests.waiting import HANG

WARM = 20
"""Records before the first that counts."""
SOURCE = """
name = "{name}"
folder = "{folder}/{name}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{topic}"
[source.schema]
id = "int64"
{schema}
"""
SINK = """
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{topic}"
columns = ["id"]
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """When an answer was read, on `time.perf_counter`, and the version that gave it ("" if it names
    none)."""

    at: float
    version: str


class Stream:
    """Puts records into one topic and waits for their answers in another.

    Attributes:
        answers: id of a record -> its first answer.
        answered_by: the version of the newest answer.
        process: what answers; None until it runs.
    """

    def __init__(self, broker: Broker, topic: str, sink: str, value: Mapping[str, float]) -> None:
        """
        Args:
            value: of each record, beside its id.
        """
        self.answers: dict[int, Answer] = {}
        self.answered_by = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=0)
        self._consumer = KafkaConsumer(
            bootstrap_servers=broker.bootstrap_servers, isolation_level="read_committed"
        )
        self._consumer.assign([TopicPartition(sink, 0)])
        self._consumer.seek_to_beginning()
        self._topic, self._value = topic, dict(value)
        self._put: dict[int, float] = {}

    def run(self, count: int, pause: float) -> list[float]:
        """Put so many records, so many seconds apart; return the seconds from put to read of each.

        Raises: AssertionError if a record has no answer.
        """
        first = len(self._put)
        feeding = threading.Thread(target=self._feed, args=(first, count, pause))
        feeding.start()
        deadline = time.monotonic() + count * pause + HANG
        while len(self.answers) < first + count and time.monotonic() < deadline:
            assert self.process is None or self.process.poll() is None, "the process has ended"
            for records in self._consumer.poll(timeout_ms=1_000).values():
                now = time.perf_counter()
                for record in records:
                    answer = json.loads(record.value)
                    self.answered_by = answer.get("model_version", "")
                    self.answers.setdefault(answer["id"], Answer(now, self.answered_by))
        feeding.join()
        missing = first + count - len(self.answers)
        assert not missing, f"{missing} of {count} records have no answer"
        return [self.answers[i].at - self._put[i] for i in range(first, first + count)]

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
def engine_between(
    broker: Broker,
    folder: Path,
    tables: str,
    name: str,
    value: Mapping[str, float],
    sets: Sequence[str] = (),
) -> Iterator[Stream]:
    """Run an engine between two new topics, from its first answers on.

    Args:
        tables: of its file, beside those of the topics.
        name: of the pipeline.
        value: of each record, beside its id.
        sets: ``KEY=VALUE`` that are set in the file.
    """
    topic, sink = broker.topic(), broker.topic()
    text = tables + SINK.format(bootstrap_servers=broker.bootstrap_servers, topic=sink)
    file = pipeline(broker, folder, text, name, topic, value)
    with answering(broker, command(file, sets), topic, sink, value) as stream:
        yield stream


@contextmanager
def answering(
    broker: Broker, words: Sequence[str], topic: str, sink: str, value: Mapping[str, float]
) -> Iterator[Stream]:
    """Run a process that answers one topic in another, from its first answers on; it must end well
    when it is told to.

    Args:
        words: that start it.
    """
    stream = Stream(broker, topic, sink, value)
    try:
        with running(words) as stream.process:
            stream.run(WARM, 0.05)
            yield stream
    finally:
        stream.close()


@contextmanager
def running(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the block runs; it must end well when it is told to."""
    # An installation has its modules compiled; here the first start compiles them.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment)
    try:
        yield process
        process.terminate()
        code = process.wait(HANG)
        assert code == 0, f"{' '.join(words)} ended with {code}"
    finally:
        process.kill()
        process.wait()


def pipeline(
    broker: Broker, folder: Path, tables: str, name: str, topic: str, value: Mapping[str, float]
) -> Path:
    """Write the file of a pipeline that reads records of such values from a topic; return it.

    Args:
        tables: of the file, beside that of the source.
    """
    schema = "\n".join(f'{column} = "float64"' for column in value)
    places: dict[str, Any] = {"name": name, "folder": folder, "topic": topic, "schema": schema}
    text = SOURCE.format(bootstrap_servers=broker.bootstrap_servers, **places)
    file = folder / f"{name}.toml"
    file.write_text(text + tables, encoding="utf-8")
    return file


def command(file: Path, sets: Sequence[str] = ()) -> list[str]:
    """Return the words that run a pipeline file."""
    words = [sys.executable, "-m", "engine.commands.cli", "run", str(file), "--log-level", "error"]
    return [*words, *(word for text in sets for word in ("--set", text))]


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile, in ms."""
    return {f"p{q}, ms": float(np.percentile(seconds, q)) * 1e3 for q in (50, 99)}


__all__ = [
    "Answer",
    "Stream",
    "answering",
    "command",
    "engine_between",
    "pipeline",
    "quantiles",
    "running",
]
