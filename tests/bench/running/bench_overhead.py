"""What headrace adds to bare ONNX Runtime at half load, where no record waits for others
(``max_delay = 0``).

``python -m tests.bench overhead``

The network has four layers of 512, on one thread everywhere. In process, rows arrive in memory as a
Poisson process at half of the loop's capacity, and a bare loop calls the session with what is
there. On a topic, records come evenly spaced, at half of what a minimal loop of kafka-python and
ONNX Runtime carries (`bare_serving`), with broker, putter and reader on the same machine; from put
to read. Rounds of both are interleaved. About four minutes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.config import LoaderSettings
from engine.types import EndOfStream
from models.export.model_files import SCORE
from models.export.onnx_inputs import OnnxInputs
from tests.bench.measure import median, report
from tests.bench.models.bench_inference import NAMES, data, predictor, trained
from tests.bench.reading.bench_deadline import FULL, Arrivals, latencies, measured
from tests.bench.running import bare_serving
from tests.bench.running.streams import answering, engine_between
from tests.broker import shared_broker

NO_DELAY = LoaderSettings(batch_rows=FULL, max_delay=0)
SERVE = """
[loader]
max_delay = 0
[infer]
model = "{model}"
threads = 1
"""
Seconds = NDArray[np.float64]
QS = (50, 99)


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/overhead.json``."""
    rounds = 3 if quick else 9
    figures: dict[str, float] = {}
    raw: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-overhead-") as name:
        model = trained(Path(name), quick=quick, batches=30)["float32"]
        for place, measure in {"in process": in_process, "on a topic": on_a_topic}.items():
            rate, found = measure(model, rounds, quick=quick)
            figures[f"{place}: records/s"] = rate
            for q in QS:
                ms = {way: _ms(each, q) for way, each in found.items()}
                figures |= {f"{place}, {way}: p{q}, ms": median(ms[way]) for way in ms}
                added = [ours - bare for ours, bare in zip(*ms.values(), strict=True)]
                figures[f"{place}, added: p{q}, ms"] = median(added)
                raw |= {f"{place}, {way}: p{q}": [n / 1e3 for n in ms[way]] for way in ms}
    report("overhead", figures, seconds=raw, goal="p99 at most 2 ms above the bare loop's")


def in_process(model: Path, rounds: int, *, quick: bool) -> tuple[float, dict[str, list[Seconds]]]:
    """Return rows a second, and the seconds of each from its arrival to the end of its batch."""
    rate = measured(model, 16_384 if quick else 131_072) / 2
    count = int(rate * (0.3 if quick else 5.0))
    times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))
    rows = data(count, seed=1).drop("y")
    serving = predictor(model)
    serving.bind(dict(rows.schema))
    ways: dict[str, Callable[[], Seconds]] = {
        "headrace": lambda: latencies(serving, rows, times, NO_DELAY)[0],
        "bare": lambda: _bare(model, rows, times),
    }
    return rate, _rounds(ways, rounds)


def _bare(model: Path, rows: pl.DataFrame, times: Seconds) -> Seconds:
    """The same as `latencies`, of a loop that calls the session with what is there."""
    session, inputs = predictor(model)._session, OnnxInputs(dict.fromkeys(NAMES, "double"))
    source, done = Arrivals(rows, times), np.zeros(len(times))
    with suppress(EndOfStream):
        while True:
            if (records := source.read(FULL, 1 << 30, 0.1)) is not None:
                assert isinstance(records.values, pl.DataFrame)
                session.run([SCORE], inputs.feed(records.values))
                done[records.positions] = time.monotonic() - source.start
    late: Seconds = (done - times)[len(times) // 5 :]
    return late


def on_a_topic(model: Path, rounds: int, *, quick: bool) -> tuple[float, dict[str, list[Seconds]]]:
    """Return records a second, and the seconds of each from its put to its answer's read."""
    broker, value = shared_broker(), dict.fromkeys(NAMES, 0.5)
    topic, sink = broker.topic(), broker.topic()
    words = [sys.executable, "-m", bare_serving.__name__, broker.bootstrap_servers, topic, sink]
    serve, sets = SERVE.format(model=model), ["sink.linger=0"]
    with (
        answering(broker, [*words, str(model)], topic, sink, value) as bare,
        engine_between(broker, model.parent, serve, "serve", value, sets) as ours,
    ):
        burst, start = 50 if quick else 10_000, time.perf_counter()
        bare.run(burst, 0.0)
        rate = burst / (time.perf_counter() - start) / 2
        count = 20 if quick else int(10 * rate)
        ways: dict[str, Callable[[], Seconds]] = {
            "headrace": lambda: np.array(ours.run(count, 1 / rate)),
            "bare": lambda: np.array(bare.run(count, 1 / rate)),
        }
        return rate, _rounds(ways, rounds)


def _rounds(ways: Mapping[str, Callable[[], Seconds]], rounds: int) -> dict[str, list[Seconds]]:
    """Return what each way takes in each round; each begins every other round."""
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            found[name].append(ways[name]())
    return found


def _ms(rounds: list[Seconds], q: int) -> list[float]:
    return [float(np.percentile(each, q)) * 1e3 for each in rounds]
