"""One engine that learns and answers: from a record's put into a topic until a reader has the
answer, with each ``[sink] answer``.

``python -m tests.bench answers``

An engine of its own process learns a network of 256-256, a step for each record and eight replay
steps after it, and writes the answers to a topic, at 5 records a second, evenly spaced: more than
it learns in time would wait with either. `bench_trickle` has an engine that only serves.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench.measure import report
from tests.bench.models.bench_inference import NAMES
from tests.bench.running.streams import engine_between, quantiles
from tests.broker import shared_broker

RATE = 5
SECONDS = 30
WARM = 100
"""Records before the first that counts."""
LEARN = """
[model]
target = "y"
task = "regression"
numeric = ["x*"]
layers = [256, 256]
[train]
threads = 1
step_rows = 1
replay_steps = 8
"""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/answers.json``."""
    broker = shared_broker()
    figures: dict[str, float] = {}
    raw: dict[str, list[float]] = {}
    value = dict.fromkeys([*NAMES, "y"], 0.5)
    with tempfile.TemporaryDirectory(prefix="headrace-answers-") as name:
        for way in ("learned", "first"):
            sets = [f"sink.answer={way}"]
            with engine_between(broker, Path(name), LEARN, way, value, sets) as stream:
                stream.run(3 if quick else WARM, 0.05)
                raw[way] = seconds = stream.run(3 if quick else SECONDS * RATE, 1 / RATE)
            for quantile, ms in quantiles(seconds).items():
                figures[f"{way}: {quantile}"] = ms
    report("answers", figures, seconds=raw, goal="first below learned")
