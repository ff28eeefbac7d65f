"""How fresh answers are: from an event's put into a topic until the first answer by a version of
the model that has learned it.

``python -m tests.bench freshness``

One engine learns a topic of events, 20 a second, each when it is read, and publishes a version
every 10 seconds. Another one answers rows of a second topic, 20 a second, and takes the versions up
while it does. A version has learned the events before its positions; an answer names its version.
Both engines, the broker and this process share the machine. About three and a half minutes.

Half of the pause between two versions is what an event waits for the next one on average, and the
whole pause is what the last of them wait.
"""

from __future__ import annotations

import json
import math
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from kafka import KafkaProducer
from numpy.typing import NDArray

from engine.versions.store import READY_FILE, Versions
from tests.bench.measure import report
from tests.bench.models.bench_inference import NAMES
from tests.bench.running.streams import (
    Stream,
    command,
    engine_between,
    pipeline,
    running,
)
from tests.broker import Broker, shared_broker
from tests.waiting import HANG, until

EVENTS, ROWS = 20, 20
"""Events and rows a second."""
SECONDS, EVERY = 180, 10.0
QUICK_SECONDS, QUICK_EVERY = 2, 0.5
LEARN = """
[loader]
batch_rows = 64
[model]
target = "y"
task = "regression"
numeric = ["x*"]
layers = [64]
[train]
threads = 1
step_rows = 1
replay_steps = 0
[checkpoint]
interval = 1
[export]
every = {every}
keep = 10000
compress = false
"""
SERVE = """
[infer]
model = "{versions}"
threads = 1
"""
QS = (50, 99)
Seconds = NDArray[np.float64]


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/freshness.json``."""
    broker = shared_broker()
    seconds, every = (QUICK_SECONDS, QUICK_EVERY) if quick else (SECONDS, EVERY)
    value = dict.fromkeys(NAMES, 0.5)
    with tempfile.TemporaryDirectory(prefix="headrace-freshness-") as name:
        folder, topic = Path(name), broker.topic()
        versions = Versions(folder / "learn" / "versions")
        learn = LEARN.format(every=every)
        file = pipeline(broker, folder, learn, "learn", topic, {**value, "y": 0.0})
        serve = SERVE.format(versions=versions.folder)
        with Events(broker, topic) as events, running(command(file)) as engine:
            until(versions.pointer.read_or_none, process=engine, what="a version")
            with engine_between(broker, folder, serve, "serve", value) as stream:
                first = len(events.put)
                stream.run(seconds * ROWS, 1 / ROWS)
                last = len(events.put)
                _ask_until_learned(stream, versions, topic, last)
        taken = TakenUp.of(stream, versions, topic)
    put = np.array(events.put[first:last])
    waits = {
        "event to version": taken.first_with(taken.published, first, last) - put,
        "event to answer": taken.first_with(taken.answered, first, last) - put,
    }
    figures = {
        "events": float(last - first),
        "versions published": float(len(taken.positions)),
        "versions that answered": float(np.isfinite(taken.answered).sum()),
        **{f"{name}: p{q}, s": float(np.percentile(w, q)) for name, w in waits.items() for q in QS},
    }
    raw = {name: wait.tolist() for name, wait in waits.items()}
    report("freshness", figures, seconds=raw, goal="event to answer at p50 and p99, every 10 s")


def _ask_until_learned(stream: Stream, versions: Versions, topic: str, events: int) -> None:
    """Go on asking until a version answers that has learned so many events."""
    end = time.monotonic() + HANG
    while not np.isfinite(TakenUp.of(stream, versions, topic).learned(events)):
        assert time.monotonic() < end, f"no version that has learned {events} events has answered"
        stream.run(ROWS, 1 / ROWS)


class Events:
    """Puts events into a topic, so many a second, while the block runs.

    Attributes:
        put: when each was put, on `time.perf_counter`, by its offset.
    """

    def __init__(self, broker: Broker, topic: str) -> None:
        self.put: list[float] = []
        self._topic = topic
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=0)
        self._done = threading.Event()
        self._feeding = threading.Thread(target=self._feed)

    def __enter__(self) -> Self:
        self._feeding.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._feeding.join()
        self._producer.close()

    def _feed(self) -> None:
        start, rng = time.perf_counter(), np.random.default_rng(0)
        while not self._done.wait(max(0.0, start + len(self.put) / EVENTS - time.perf_counter())):
            x = rng.normal(size=len(NAMES)).tolist()
            event = {"id": len(self.put), "y": x[0] + x[1], **dict(zip(NAMES, x, strict=True))}
            self.put.append(time.perf_counter())
            self._producer.send(self._topic, json.dumps(event).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenUp:
    """When versions were there and answered, on `time.perf_counter`, by their order.

    Attributes:
        positions: the next event of each version, shape (n,).
        published: when it was there, shape (n,).
        answered: when its first answer was read; infinity if it gave none, shape (n,).
    """

    positions: NDArray[np.int64]
    published: Seconds
    answered: Seconds

    @classmethod
    def of(cls, stream: Stream, versions: Versions, topic: str) -> Self:
        """Return what has become of the versions so far."""
        answered: dict[str, float] = {}
        for answer in stream.answers.values():
            answered[answer.version] = min(answer.at, answered.get(answer.version, math.inf))
        offset = time.perf_counter() - time.time()
        known = [versions.version(number) for number in versions.numbers()]
        ready = [versions.path(v.number) / READY_FILE for v in known]
        return cls(
            positions=np.array([v.positions[f"{topic}/0"] for v in known]),
            published=np.array([path.stat().st_mtime + offset for path in ready]),
            answered=np.array([answered.get(v.model_version, math.inf) for v in known]),
        )

    def first_with(self, times: Seconds, first: int, last: int) -> Seconds:
        """Return the first of the versions' times that is of one which has learned an event, for
        the events from `first` to `last`, shape (last - first,)."""
        earliest = np.append(np.minimum.accumulate(times[::-1])[::-1], math.inf)
        found: Seconds = earliest[
            np.searchsorted(self.positions, np.arange(first, last), side="right")
        ]
        return found

    def learned(self, events: int) -> float:
        """Return when the first answer came that knows so many events."""
        return float(self.first_with(self.answered, events - 1, events)[0])
