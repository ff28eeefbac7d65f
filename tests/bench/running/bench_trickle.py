"""Records that come one by one: from their put into a topic until a reader has the answer.

``python -m tests.bench trickle``

An engine of its own process serves a small model with the defaults, at least once and exactly once,
at 1, 5, 20 and 50 records a second, evenly spaced: five and a half minutes in all. The same process
puts and reads, so that both ends have one clock; broker, engine and it share the machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine.loading.collate import Collate
from engine.types import Batch, Mark
from models.export.model import export
from models.learners.tabular import TabularLearner
from tests.bench.measure import report
from tests.bench.models.bench_inference import FEATURES, NAMES, data
from tests.bench.running.streams import engine_between, quantiles
from tests.broker import shared_broker

RATES = (1, 5, 20, 50)
WAYS: dict[str, Sequence[str]] = {
    "at least once": (),
    "exactly once": ("sink.exactly_once=true",),
}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/trickle.json``."""
    broker = shared_broker()
    figures: dict[str, float] = {}
    raw: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-trickle-") as name:
        model = small(Path(name) / "small.onnx")
        serve, value = f'[infer]\nmodel = "{model}"\n', dict.fromkeys(NAMES, 0.5)
        for way, sets in WAYS.items():
            with engine_between(
                broker, Path(name), serve, way.replace(" ", "-"), value, sets
            ) as stream:
                for rate in RATES:
                    count = max(3, rate // 2) if quick else max(60, rate * 30)
                    raw[f"{way}, {rate}/s"] = seconds = stream.run(count, 1 / rate)
                    for quantile, ms in quantiles(seconds).items():
                        figures[f"{way}, {rate} records/s: {quantile}"] = ms
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
