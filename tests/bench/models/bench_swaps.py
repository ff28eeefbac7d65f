"""Swaps under load: how long batches take while versions are swapped in, beside how long they take
while nothing happens.

``python -m tests.bench swaps``

A network of two layers of 512 answers batches of 64 rows on one thread of ONNX Runtime, at half of
what it could. In every other round the pointer moves to another of eight versions ten times a
second: each is read, verified, built, tried and taken up. Both kinds of rounds are interleaved.
"""

from __future__ import annotations

import threading
import time
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import psutil

from engine.observing.metrics import Metrics
from engine.types import Batch, Mark, Predictor
from engine.versions.store import Versions
from engine.versions.swapping import SwappingPredictor
from models.serving.opening import open_model
from models.serving.settings import InferSettings
from tests.bench.measure import median, report
from tests.models.serving.published import publish

COLUMNS = tuple(f"x{i}" for i in range(16))
LAYERS, ROWS, VERSIONS = (512, 512), 64, 8
PAUSE = 0.1
"""Seconds between two moves of the pointer."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/swaps.json``."""
    rounds, seconds = (3, 0.2) if quick else (10, 10.0)
    with TemporaryDirectory() as folder:
        versions = Versions(Path(folder) / "versions")
        for seed in range(VERSIONS):
            publish(versions, seed, folder=Path(folder), columns=COLUMNS, layers=LAYERS)
        predictor = SwappingPredictor(versions, _opened, poll=0.01, threads=1, max_slowdown=1e9)
        batch = _batch()
        predictor.bind(dict(batch.frame.schema))
        metrics, process = Metrics(), psutil.Process()
        found: dict[str, list[list[float]]] = {"quiet": [], "swapping": []}
        held: list[int] = []
        with predictor.watched(metrics):
            _answer(predictor, batch, seconds / 10)
            for _ in range(rounds):
                found["quiet"].append(_answer(predictor, batch, seconds))
                with _Moving(versions):
                    found["swapping"].append(_answer(predictor, batch, seconds))
                held.append(process.memory_info().rss)
        swaps = metrics.model_swaps.labels(outcome="swapped")._value.get()
    p99 = {
        name: [float(np.quantile(times, 0.99)) for times in each] for name, each in found.items()
    }
    figures = {
        "swaps": float(swaps),
        **{f"{name}, ms, median": 1e3 * median([*chain(*each)]) for name, each in found.items()},
        **{f"{name}, ms, 99th percentile": 1e3 * median(each) for name, each in p99.items()},
        "99th percentile, swapping / quiet": median(p99["swapping"]) / median(p99["quiet"]),
        "memory at the end / after the first round": held[-1] / held[0],
    }
    report("swaps", figures, seconds=p99, goal="1.5 times the quiet one or less; memory 1.05")


class _Moving:
    """Moves the pointer from version to version while the block runs."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._move)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _move(self) -> None:
        number = 0
        while not self._done.wait(PAUSE):
            number = number % VERSIONS + 1
            self._versions.promote(number)


def _answer(predictor: Predictor, batch: Batch, seconds: float) -> list[float]:
    """Answer batches at half load; return how long each took."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        done = predictor.predict(predictor.collate(batch))
        times.append(time.perf_counter() - start)
        assert len(done) == ROWS
        assert done.frame["model_version"].n_unique() == 1
        time.sleep(times[-1])
    return times


def _opened(path: Path, threads: int | None) -> Predictor:
    return open_model(InferSettings(model=str(path), threads=threads))


def _batch() -> Batch:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(rng.normal(size=(ROWS, len(COLUMNS))), schema=COLUMNS)
    places = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    return Batch(frame=frame.select(*places, pl.all()), mark=Mark(), arrived=0.0, raw_rows=ROWS)


if __name__ == "__main__":
    main()
