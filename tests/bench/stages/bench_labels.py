"""Labels that come later: rows and labels a second of the join alone, beside a polars join of each
batch with what waits; and of a whole training run, beside one whose rows hold their label.

``python -m tests.bench labels``

Each row waits for its label for a million rows; a row is eight numbers and a key of text. polars
keeps what waits as one frame, and takes the rows out that have their label.

The quality, too, of rows a second apart: where nothing changes, with labels at once and some
minutes late; and on a stream where what makes a row positive turns slowly, and only positive rows
are reported, after up to two hours: with rows learned after those two hours, and with rows assumed
negative after ten minutes or at once, corrected by what comes later, and weighed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from engine.columnar.hashing import hashes
from engine.config import Pipeline
from engine.run import Run
from engine.running.late_labels.label_join import Arrivals, LabelJoin
from engine.types.arrays import Ints
from tests.bench.measure import interleave, median, report

BATCH, COLUMNS = 8_192, 8
JOIN, PEER = "join", "polars, each batch"
LATE, AT_ONCE = "run with late labels", "run with labels in the rows"


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/labels.json``."""
    waiting, batches, rounds = (20, 1, 3) if quick else (122, 10, 7)
    rows = 20_000 if quick else 400_000
    feed = batches_of(waiting, waiting + (rounds + 1) * batches)
    own, peer = Joined(feed, waiting), Anew(feed, waiting)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rows)
        runs: dict[str, Callable[[], object]] = {
            JOIN: lambda: own.step(batches),
            PEER: lambda: peer.step(1),
            LATE: lambda: run(Path(folder), late=True),
            AT_ONCE: lambda: run(Path(folder), late=False),
        }
        seconds = interleave(runs, rounds=rounds)
    rates = {JOIN: batches * BATCH, PEER: BATCH, LATE: rows, AT_ONCE: rows}
    figures = {f"{name}, rows/s": n / median(seconds[name]) for name, n in rates.items()}
    for name, side in ((JOIN, own), (PEER, peer)):
        figures[f"{name}, rows per CPU second"] = BATCH / median(side.cpu)
    for rate in ("rows/s", "rows per CPU second"):
        ratio = figures[f"{JOIN}, {rate}"] / figures[f"{PEER}, {rate}"]
        figures[f"{JOIN}: ratio to {PEER}, {rate}"] = ratio
    share = figures[f"{LATE}, rows/s"] / figures[f"{AT_ONCE}, rows/s"]
    figures[f"{LATE}: ratio to {AT_ONCE}"] = share
    figures[f"{JOIN}, MiB for {waiting * BATCH:,} waiting rows"] = own.join.nbytes / 2**20
    with tempfile.TemporaryDirectory() as folder:
        figures |= qualities(Path(folder), rows // 4)
    report("labels", figures, seconds=seconds, goal="10 x polars joining each batch anew")


def batches_of(delay: int, count: int) -> list[tuple[pl.DataFrame, pl.DataFrame]]:
    """Rows, and labels of those so many batches earlier, in an order of their own."""
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.normal(size=BATCH) for i in range(COLUMNS)}
    feed = []
    for at in range(0, count * BATCH, BATCH):
        ids = np.arange(at, at + BATCH)
        rows = pl.DataFrame({"key": pl.Series(ids).cast(pl.String), "at": ids, **columns})
        late = rng.permutation(ids - delay * BATCH)
        late = late[late >= 0]
        feed.append((rows, pl.DataFrame({"key": pl.Series(late).cast(pl.String), "y": late})))
    return feed


class Joined:
    """The join, filled so that each label finds its row."""

    def __init__(self, feed: Sequence[tuple[pl.DataFrame, pl.DataFrame]], waiting: int) -> None:
        self.join = LabelJoin(horizon=2 * waiting * BATCH, lateness=0, most=1 << 40)
        self._feed = iter(feed)
        self.cpu: list[float] = []
        self.step(waiting)
        self.cpu.clear()

    def step(self, batches: int) -> None:
        """Join so many batches."""
        for _ in range(batches):
            rows, labels = next(self._feed)
            start, times = time.process_time(), rows["at"].to_numpy()
            self.join.add(_arrivals(rows, times), _arrivals(labels, times[: len(labels)]))
            assert len(self.join.settle().corrected) == len(labels)
            self.cpu.append(time.process_time() - start)


def _arrivals(frame: pl.DataFrame, times: Ints) -> Arrivals:
    turns = np.zeros(len(frame), np.int64)
    keys = hashes(frame.select("key"))
    return Arrivals(keys=keys, times=times, turns=turns, frames={"frame": frame})


class Anew:
    """polars on the same batches."""

    def __init__(self, feed: Sequence[tuple[pl.DataFrame, pl.DataFrame]], waiting: int) -> None:
        self._feed = iter(feed)
        self.cpu: list[float] = []
        self._waiting = pl.concat([next(self._feed)[0] for _ in range(waiting)])

    def step(self, batches: int) -> None:
        """Join so many batches."""
        for _ in range(batches):
            rows, labels = next(self._feed)
            start = time.process_time()
            waiting = pl.concat([self._waiting, rows])
            joined = labels.join(waiting, on="key", how="inner")
            assert joined.height == len(labels)
            self._waiting = waiting.join(labels, on="key", how="anti")
            self.cpu.append(time.process_time() - start)


def write(folder: Path, n: int) -> None:
    """Write rows, labels of an hour later, and rows that hold them."""
    rng = np.random.default_rng(1)
    at = pl.Series("at", 1_000_000 * np.arange(n)).cast(pl.Datetime("us"))
    rows = pl.DataFrame({"id": np.arange(n), "at": at})
    rows = rows.with_columns(pl.Series(f"x{i}", rng.normal(size=n)) for i in range(COLUMNS))
    labels = rows.select("id", pl.col("at") + pl.duration(hours=1), y=pl.col("x0") * 2)
    rows.write_parquet(folder / "rows.parquet")
    labels.write_parquet(folder / "labels.parquet")
    rows.with_columns(labels["y"]).write_parquet(folder / "whole.parquet")


def run(folder: Path, *, late: bool) -> None:
    """Train on them once."""
    table = {
        "name": "bench",
        "folder": str(folder / "run"),
        "source": {"kind": "files", "path": str(folder / f"{'rows' if late else 'whole'}.parquet")},
        "loader": {"batch_rows": BATCH},
        "model": {"kind": "linear", "target": "y", "numeric": ["x*"]},
    }
    if late:
        source = {"kind": "files", "path": str(folder / "labels.parquet")}
        table["labels"] = {"by": ["id"], "time": "at", "horizon": "6h", "source": source}
    totals = Run(Pipeline.of(table)).run(fresh=True).totals
    assert totals.learned


def qualities(folder: Path, n: int) -> dict[str, float]:
    """Return the accuracy with labels at once and late, and of the policies where rows drift."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, 2))
    angle = np.linspace(0, 4 * np.pi, n)
    at = pl.Series("at", 1_000_000 * np.arange(n)).cast(pl.Datetime("us"))
    rows = pl.DataFrame({"id": np.arange(n), "at": at, "a": x[:, 0], "b": x[:, 1]})
    noise = rng.normal(size=n) / 2
    still = np.where(x.sum(axis=1) + noise > 0, "yes", "no")
    turning = np.where(x[:, 0] * np.cos(angle) + x[:, 1] * np.sin(angle) + noise > 1, "yes", "no")
    rows.write_parquet(folder / "rows.parquet")
    late = pl.Series(rng.uniform(0, 600e6, n)).cast(pl.Duration("us"))
    later = pl.Series(rng.exponential(1_800e6, n).clip(0, 7_000e6)).cast(pl.Duration("us"))
    all_labels = rows.select("id", "at", y=pl.Series(still))
    reported = rows.select("id", pl.col("at") + later, y=pl.Series(turning)).filter(y="yes")
    wait = {"horizon": "2h", "on_missing": "no"}
    soon = {"horizon": "10m", "on_missing": "no", "corrections": "2h"}
    at_once = {**soon, "horizon": "1s"}
    cases: dict[str, tuple[pl.DataFrame, dict[str, str], str]] = {
        "nothing changes, labels at once": (all_labels, {}, "cross_entropy"),
        "nothing changes, ten minutes late": (
            all_labels.with_columns(pl.col("at") + late), {}, "cross_entropy",
        ),
        "drift, learned after two hours": (reported, wait, "cross_entropy"),
        "drift, assumed after ten minutes": (reported, soon, "cross_entropy"),
        "drift, assumed at once": (reported, at_once, "cross_entropy"),
        "drift, assumed at once, weighed": (reported, at_once, "fake_negatives"),
    }  # fmt: skip
    figures = {}
    for name, (labels, keys, loss) in cases.items():
        labels.sort("at").write_parquet(folder / "labels.parquet")
        report = _report(folder, keys, loss)
        for figure in ("accuracy", "average_precision", "log_loss"):
            figures[f"{name}, {figure}"] = report[figure]
    return figures


def _report(folder: Path, keys: dict[str, str], loss: str) -> dict[str, float]:
    source = {"kind": "files", "path": str(folder / "labels.parquet")}
    table = {
        "name": "bench",
        "folder": str(folder / "run"),
        "source": {"kind": "files", "path": str(folder / "rows.parquet")},
        "labels": {"by": ["id"], "time": "at", "horizon": "2h", "source": source, **keys},
        "loader": {"batch_rows": 256},
        "model": {"target": "y", "numeric": ["a", "b"], "classes": ["no", "yes"], "layers": [16]},
        "train": {"lr": 0.01, "threads": 1, "loss": loss},
    }
    report: dict[str, float] = Run(Pipeline.of(table)).run(fresh=True).report["all"]
    return report
