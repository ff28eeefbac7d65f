"""Batches closed by deadline against batches of a fixed size, at half of the model's capacity.

``python -m tests.bench deadline``

Records arrive as a Poisson process and are predicted by a network of four layers of 512 on one
thread.
The capacity is what the same loop reaches in batches of 8,192 rows when all rows are there. Every
way of batching gets the same arrivals. The latency of a record is from its arrival to the end of
its batch; the first fifth of each run does not count.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.values.columns import Columns
from engine.config import LoaderSettings
from engine.loading.loader import Loader
from engine.types import EndOfStream, Mark, Records, Schema, Source
from models.serving.predictor import OnnxPredictor
from tests.bench.measure import median, report
from tests.bench.models.bench_inference import data, predictor, through, trained

OBJECTIVE = 0.05
FULL = 8_192
TICK = 0.001
"""How often the source looks for records that have arrived, seconds."""
WAYS: dict[str, LoaderSettings] = {
    "deadline": LoaderSettings(batch_rows=FULL, latency_objective=OBJECTIVE),
    "fixed at 8,192 rows": LoaderSettings(batch_rows=FULL),
    "fixed at 1,024 rows": LoaderSettings(batch_rows=1_024),
    "fixed at 64 rows": LoaderSettings(batch_rows=64),
    "8,192 rows or 50 ms": LoaderSettings(batch_rows=FULL, max_delay=OBJECTIVE),
}


class Arrivals(Source):
    """Rows that are there from their time on, seconds after the first read. One partition."""

    def __init__(self, rows: pl.DataFrame, times: NDArray[np.float64]) -> None:
        self.format = Columns()
        self.start = 0.0
        self._rows = rows
        self._times = times
        self._at = 0

    def schema(self, declared: Schema) -> Schema:
        """The frame's."""
        return dict(self._rows.schema)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """What has arrived since the last read."""
        self.start = self.start or time.monotonic()
        if self._at == len(self._times):
            raise EndOfStream
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            time.sleep(TICK)
            now = time.monotonic() - self.start
            there = int(np.searchsorted(self._times, now, "right"))
            if there > self._at:
                first, self._at = self._at, min(there, self._at + max_rows)
                return Records(
                    partition="arrivals",
                    positions=np.arange(first, self._at),
                    next=self._at,
                    values=self._rows[first : self._at],
                    arrived=self.start + float(self._times[first]),
                )
        return None

    def seek(self, mark: Mark) -> None:
        self._at = mark.positions.get("arrivals", 0)

    def commit(self, mark: Mark) -> bool:
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {}

    def progress(self, mark: Mark) -> float | None:
        return None

    def close(self) -> None: ...


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/deadline.json``."""
    seconds = 0.3 if quick else 20.0
    with TemporaryDirectory() as folder:
        model = trained(Path(folder), quick=quick, batches=30)["float32"]
        capacity = measured(model, 16_384 if quick else 131_072)
        rate = capacity / 2
        times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
        rows = data(len(times), seed=1).drop("y")
        serving = predictor(model)
        serving.bind(dict(rows.schema))
        found = {way: latencies(serving, rows, times, WAYS[way]) for way in WAYS}
    figures: dict[str, object] = {"capacity, rows/s": capacity, "arrivals, rows/s": rate}
    for way, (latency, batches) in found.items():
        for q in (50, 99):
            figures[f"{way}: p{q}, ms"] = float(np.percentile(latency, q)) * 1e3
        figures[f"{way}: mean rows a batch"] = len(times) / batches
    met = {
        way: float(np.percentile(latency, 99)) <= OBJECTIVE for way, (latency, _) in found.items()
    }
    figures["within the objective"] = ", ".join(way for way in met if met[way]) or "none"
    report(
        "deadline", figures, goal=f"p99 within {OBJECTIVE * 1e3:.0f} ms, where a fixed size is not"
    )


def measured(model: Path, count: int) -> float:
    """Rows a second in full batches."""
    run = through(model, data(count, seed=1).drop("y"), FULL)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return count / median(taken[1:])


def latencies(
    serving: OnnxPredictor, rows: pl.DataFrame, times: NDArray[np.float64], way: LoaderSettings
) -> tuple[NDArray[np.float64], int]:
    """Seconds from arrival to done of each row but the first fifth; and how many batches."""
    source = Arrivals(rows, times)
    done, batches = np.zeros(len(times)), 0
    schema = source.schema({})
    with Loader(source, schema=schema, collate=serving.collate, settings=way) as loader:
        for batch in loader:
            if not len(batch):
                continue
            serving.predict(batch)
            batches += 1
            done[batch.frame["_position"].to_numpy()] = time.monotonic() - source.start
    return (done - times)[len(times) // 5 :], batches


if __name__ == "__main__":
    main()
