"""Five hundred versions published and swapped in while a topic is answered.

``python -m tests.bench live_swaps``

An engine answers 200 records a second, each at once (``max_delay = 0``), with a network of two
layers of 128. In every other round a version of it that has learned one more batch is published
every half second, as soon as the one before has answered; all are exported beforehand, so that this
process only copies them. Both kinds of rounds are interleaved: eight minutes in all. Every record
must be answered, by a version that was published. `bench_swaps` has the predictor alone, with a
larger network, and `bench_freshness` an engine that publishes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import psutil

from engine.loading.collate import Collate
from engine.types import Batch, Mark
from engine.versions.store import Versions
from engine.versions.version import Details
from models.export.model import export
from models.learners.tabular import TabularLearner
from tests.bench.measure import median, report
from tests.bench.models.bench_inference import FEATURES, NAMES, data
from tests.bench.running.streams import Stream, engine_between
from tests.broker import shared_broker

RATE = 200
"""Records a second."""
PAUSE = 0.5
"""Seconds between two publishings, at least."""
REFUSED = 20.0
"""Seconds without an answer after which a version counts as refused."""
ROWS = 64
"""Of a batch that a version has learned, and the one before has not."""
SERVE = """
[loader]
max_delay = 0
[infer]
model = "{versions}"
poll_interval = 0.1
threads = 1
"""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/live_swaps.json``."""
    rounds, swaps, seconds = (3, 2, 0.5) if quick else (10, 50, 15.0)
    broker = shared_broker()
    with tempfile.TemporaryDirectory(prefix="headrace-live-swaps-") as name:
        folder = Path(name)
        publisher = Publisher(folder, _learned(folder, 1 + rounds * swaps))
        publisher.publish()
        serve, value = SERVE.format(versions=publisher.versions.folder), dict.fromkeys(NAMES, 0.5)
        found: dict[str, list[list[float]]] = {"quiet": [], "swapping": []}
        held: list[int] = []
        sets = ["sink.linger=0"]
        with engine_between(broker, folder, serve, "serve", value, sets) as stream:
            assert stream.process is not None
            process = psutil.Process(stream.process.pid)
            stream.run(int(RATE * seconds / 3), 1 / RATE)
            for _ in range(rounds):
                found["quiet"].append(stream.run(int(RATE * seconds), 1 / RATE))
                found["swapping"].append(publisher.publish_under_load(stream, swaps))
                held.append(process.memory_info().rss)
            answered_by = {answer.version for answer in stream.answers.values()}
    assert answered_by == publisher.taken_up, answered_by ^ publisher.taken_up
    p99 = {name: [float(np.quantile(each, 0.99)) for each in all_] for name, all_ in found.items()}
    figures = {
        "records answered": float(len(stream.answers)),
        "versions swapped in": float(len(publisher.taken_up) - 1),
        "versions refused": float(publisher.refused),
        **{f"{name}, ms, median": 1e3 * median([*chain(*each)]) for name, each in found.items()},
        **{f"{name}, ms, 99th percentile": 1e3 * median(each) for name, each in p99.items()},
        "99th percentile, swapping / quiet": median(p99["swapping"]) / median(p99["quiet"]),
        "memory at the end / after the first round": held[-1] / held[0],
    }
    goal = "every record answered; 1.5 times the quiet one or less; memory 1.05"
    report("live_swaps", figures, seconds=p99, goal=goal)


class Publisher:
    """Publishes one model after the other.

    Args:
        models: files whose rows say ``v`` and their number.

    Attributes:
        versions: the folder.
        taken_up: the versions that have answered, or are to answer first.
        refused: versions that have not.
    """

    def __init__(self, folder: Path, models: Sequence[Path]) -> None:
        self.versions = Versions(folder / "versions")
        self.taken_up: set[str] = set()
        self.refused = self._published = 0
        self._models = models

    def publish(self) -> str:
        """Publish the next model; return its version."""
        version = f"v{self._published}"
        model, details = self._models[self._published], Details(model_version=version)
        self.versions.publish(model, details, keep=5)
        self._published += 1
        self.taken_up.add(version)
        return version

    def publish_under_load(self, stream: Stream, count: int) -> list[float]:
        """Publish so many, each when the one before has answered; return the seconds from put to
        read of the records that were answered meanwhile."""
        took: list[float] = []
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(self._publish, stream, count)
            while not publishing.done():
                took += stream.run(RATE // 2, 1 / RATE)
            publishing.result()
        return took

    def _publish(self, stream: Stream, count: int) -> None:
        for _ in range(count):
            start = time.monotonic()
            version = self.publish()
            while stream.answered_by != version and time.monotonic() < start + REFUSED:
                time.sleep(0.01)  # between two looks
            if stream.answered_by != version:
                self.refused += 1
                self.taken_up.remove(version)
            time.sleep(max(0.0, start + PAUSE - time.monotonic()))


def _learned(folder: Path, count: int) -> list[Path]:
    """The models of a learner that goes on learning, a batch each."""
    learner = TabularLearner(
        TabularLearner.Settings(layers=(128, 128)), TabularLearner.Training(threads=1), FEATURES
    )
    collate, models = Collate(FEATURES), []
    for number, part in enumerate(data(count * ROWS, seed=0).iter_slices(ROWS)):
        learner.learn(collate.apply(Batch(frame=part, mark=Mark(), arrived=0.0)))
        properties = {"version": f"v{number}"}
        models.append(export(folder / f"{number}.onnx", learner, [], properties))
    return models
