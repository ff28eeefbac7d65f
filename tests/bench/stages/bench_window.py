"""Windows of a key: rows a second of the `window` stage, alone, with a snapshot after each batch;
and polars, which computes the same again for each batch from the rows of the last hour.

``python -m tests.bench window``

Keys are texts, drawn evenly or by Zipf's law; 5 % of the rows are up to 5 minutes late. Each round
goes on where the one before ended, after two hours of the stream. polars gets the rows in order of
time and looks only at those of the batch's keys; it may use all cores. Bytewax and Quix Streams,
where they are installed (``pip install bytewax quixstreams``), start with nothing remembered, which
helps them; Quix Streams reads JSON from a broker.

Memory is that of a process that has 100,000 keys, of one pane each, then of ten; the rest is
counted as keys'. Then the keys are endless.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import psutil

from engine.config import load_class
from engine.scrub import STAGES
from engine.types import Batch, Mark, Stage
from tests.bench.measure import interleave, median, report
from tests.bench.stages import window_peers as peers
from tests.broker import shared_broker

BATCH = 8_192
RATE, LATENESS = 250, 300
"""Rows a second of the stream; seconds that rows are late at most."""
HOUR = timedelta(hours=1)
FIVE = ["count", "sum", "mean", "min", "max"]
SLIDING: dict[str, Any] = {"length": "60m", "lateness": "5m", "aggregates": {"amount": FIVE}}
CASES: dict[str, dict[str, Any]] = {
    "sliding 60m/10s": {**SLIDING, "resolution": "10s"},
    "sliding 60m, exact": {**SLIDING, "resolution": "1us"},
    "sliding 10m and 60m": {**SLIDING, "length": ["10m", "60m"], "resolution": "10s"},
    "tumbling 60m": {**SLIDING, "shape": "tumbling"},
    "session, gap 10m": {
        "shape": "session", "gap": "10m", "resolution": "10s", "aggregates": {"amount": FIVE},
    },
    "fading, halflife 60m": {
        "shape": "fading", "halflife": "60m", "aggregates": {"amount": ["count", "sum", "mean"]},
    },
    "distinct 60m/10s": {**SLIDING, "resolution": "10s", "aggregates": {"amount": ["distinct"]}},
}  # fmt: skip
PEER = "polars, each batch anew"


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/window.json``."""
    rounds, batches, warm = (3, 1, 2) if quick else (7, 20, 2 * 3_600 * RATE // BATCH)
    keys = 500 if quick else 100_000
    feeds: dict[str, Feed] = {}
    runs: dict[str, Callable[[], object]] = {}
    for law in ("uniform", "zipf"):
        frame = stream(law, keys, (warm + (rounds + 1) * batches) * BATCH)
        for case, options in CASES.items():
            feeds[f"{case}, {law}"] = Feed(stage(options, keys), frame, warm, batches)
        runs[f"{PEER}, {law}"] = Anew(frame.sort("at"), warm).step
    runs |= {name: feed.step for name, feed in feeds.items()}
    seconds = interleave(runs, rounds=rounds)
    figures: dict[str, float] = {}
    for name, feed in feeds.items():
        figures[f"{name}, rows/s"] = batches * BATCH / median(seconds[name])
        figures[f"{name}, rows per CPU second"] = BATCH * len(feed.cpu) / sum(feed.cpu)
        figures[f"{name}: slowest batch in a thousand, ms"] = 1e3 * float(
            np.quantile(feed.seconds, 0.999)
        )
    for law in ("uniform", "zipf"):
        rate = BATCH / median(seconds[f"{PEER}, {law}"])
        figures[f"{PEER}, {law}, rows/s"] = rate
        ours = figures[f"sliding 60m/10s, {law}, rows/s"]
        figures[f"sliding 60m/10s, {law}: ratio to {PEER}"] = ours / rate
    few = stream("uniform", keys, 200 if quick else 20_000)
    seconds |= against_peers(few, figures)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures |= pool.apply(memory, (2_000 if quick else 100_000,))
    report("window", figures, seconds=seconds, goal="2.5 M rows/s uniform, 6 M zipf (60m/10s)")


def against_peers(frame: pl.DataFrame, figures: dict[str, float]) -> dict[str, list[float]]:
    """Let the peers that are installed compute windows of these rows, and add how they compare."""
    runs: dict[str, tuple[str, Callable[[], object]]] = {}
    if peers.installed("bytewax"):
        runs["Bytewax, tumbling"] = "tumbling 60m", lambda: peers.bytewax(frame)
    if peers.installed("quixstreams"):
        broker = shared_broker()
        topic = peers.filled(broker, frame)
        runs["Quix Streams, sliding"] = (
            "sliding 60m/10s", lambda: peers.quix(broker, topic, frame.height),
        )  # fmt: skip
    if not runs:
        return {}
    seconds = interleave({name: run for name, (_, run) in runs.items()}, rounds=3)
    for name, (case, _) in runs.items():
        rate = frame.height / median(seconds[name])
        figures[f"{name}, rows/s"] = rate
        figures[f"{case}: ratio to {name}"] = figures[f"{case}, uniform, rows/s"] / rate
    return seconds


def memory(keys: int) -> dict[str, float]:
    """Bytes of a pane and of a key, without and with the mark's, once keys come again and again;
    and what is added while new keys come without end."""
    schema = {"card": pl.Int64(), "at": pl.Int64(), "amount": pl.Float64()}

    def feed(length: int, rounds: int, *, again: bool) -> tuple[list[int], Any]:
        """Let a row of each of so many keys come each round, 10 s later than in the one before;
        return the memory of the process after each, and the state."""
        options = {"length": length, "resolution": 10, "aggregates": SLIDING["aggregates"]}
        made: Any = stage(options, keys)
        made.bind(schema)
        used = []
        for n in range(rounds):
            first = 0 if again else n * keys
            for start in range(first, first + keys, BATCH):
                card = np.arange(start, min(start + BATCH, first + keys))
                rows = {"card": card, "at": np.full(len(card), 10 * n), "amount": card / 7}
                frame = pl.DataFrame(rows)
                made.apply(Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=len(card)))
            gc.collect()
            used.append(psutil.Process().memory_info().rss)
        return used, made._state

    feed(10, 1, again=True)  # compiles
    begin = psutil.Process().memory_info().rss
    used, many = feed(90, 40, again=True)
    _, one = feed(10, 40, again=True)
    pane = (many.nbytes - one.nbytes) / (many.panes - one.panes)
    endless, _ = feed(90, 40, again=False)
    return {
        "bytes of a pane": pane,
        "bytes of a key": (one.nbytes - pane * one.panes) / keys,
        "bytes of a pane, key and mark and all": (used[-1] - begin) / many.panes,
        "growth by as many new keys again, MB": (endless[-1] - endless[19]) / 1e6,
    }


def stream(law: str, keys: int, rows: int) -> pl.DataFrame:
    """Rows in the order in which they come."""
    rng = np.random.default_rng(0)
    key = rng.integers(0, keys, rows) if law == "uniform" else (rng.zipf(1.2, rows) - 1) % keys
    seconds = np.arange(rows) / RATE
    late = rng.random(rows) < 0.05
    seconds[late] -= rng.uniform(0, LATENESS, late.sum())
    names = pl.Series([f"card-{i:08d}" for i in range(keys)])
    return pl.DataFrame(
        {
            "_partition": pl.repeat("p", rows, eager=True),
            "_position": np.arange(rows),
            "card": names.gather(key),
            "at": pl.Series(1.7e15 + 1e6 * seconds).cast(pl.Int64).cast(pl.Datetime("us")),
            "amount": rng.exponential(50, rows).round(2),
        }
    )


def stage(options: dict[str, Any], keys: int) -> Stage:
    """The stage, before it is bound."""
    cls = load_class("window", STAGES, "scrub.bench")
    given = {"by": ["card"], "time": "at", "keys": 2 * keys, **options}
    made: Stage = cls("bench", cls.Settings(**given))
    return made


class Feed:
    """A stage that goes on through a stream, some batches a step; a snapshot after each."""

    def __init__(self, stage: Stage, frame: pl.DataFrame, warm: int, batches: int) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self._stage, self._batches = stage, batches
        stage.bind({c: k for c, k in frame.schema.items() if not c.startswith("_")})
        self._left = iter(frame.iter_slices(BATCH))
        for _ in range(warm):
            self._apply(next(self._left))
        self.seconds.clear()
        self.cpu.clear()

    def step(self) -> None:
        """Apply the stage to its next batches."""
        for _ in range(self._batches):
            self._apply(next(self._left))

    def _apply(self, rows: pl.DataFrame) -> None:
        batch = Batch(frame=rows, mark=Mark(), arrived=0.0, raw_rows=rows.height)
        start, cpu = time.perf_counter(), time.thread_time()
        self._stage.apply(batch)
        self._stage.snapshot()
        self.seconds.append(time.perf_counter() - start)
        self.cpu.append(time.thread_time() - cpu)


class Anew:
    """polars' `rolling` over the rows of the last hour and the batch, for each batch."""

    def __init__(self, frame: pl.DataFrame, warm: int) -> None:
        self._frame, self._at = frame, warm * BATCH

    def step(self) -> pl.DataFrame:
        """Compute the windows of the next batch's rows."""
        frame = self._frame
        batch = frame.slice(self._at, BATCH)
        first = int(frame["at"].search_sorted(batch["at"][0] - HOUR))
        self._at += BATCH
        past = frame.slice(first, self._at - first)
        own = past.join(batch.select("card").unique(), on="card", how="semi", maintain_order="left")
        x = pl.col("amount")
        seen = own.rolling("at", period="60m", group_by="card").agg(
            pl.col("_position").last(), x.count().alias("count"), x.sum().alias("sum"),
            x.mean().alias("mean"), x.min().alias("min"), x.max().alias("max"),
        )  # fmt: skip
        return batch.join(seen, on=["card", "_position"], how="left")


if __name__ == "__main__":
    main()
