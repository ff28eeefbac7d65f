"""Parquet to clean, standardized float32 tensors: headrace against the serial limit and PyTorch's
DataLoader.

``python -m tests.bench loading``

32 float columns with 3 % nulls and 2 % outliers, batches of 8,192 rows. The serial limit is what
remains when reading, cleaning and turning to numpy are each done alone, one after the other, with
polars at its best: whole row groups read, expressions made once, statistics known beforehand.
headrace learns its statistics on the way (three stages, one each), checks types and labels, and
says
where to resume. The DataLoader is set up as its documentation advises for a stream: an iterable
dataset that gives whole batches, the row groups dealt out to persistent workers; it learns one
statistic on the way, a worker its own. "frozen" is both without learning.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import psutil
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from engine.config import Pipeline
from engine.run import Run
from engine.statistics import Moments
from tests.bench.measure import interleave, median, report

ROWS, GROUP, COLUMNS = 8_192, 131_072, 32
NAMES = [f"x{i}" for i in range(COLUMNS)]
CLEAN = [((pl.col(c).fill_null(0.01).clip(-4.1, 4.2) - 0.01) * 0.9).cast(pl.Float32) for c in NAMES]
"""The same work as the three stages', with numbers that cost nothing to learn."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/loading.json``."""
    count = GROUP * (2 if quick else 16)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write(path, count)
        raw = list(slices(read(path)))
        ready = list(clean(raw))
        runs: dict[str, Callable[[], object]] = {
            "headrace": lambda: headrace(path),
            "headrace, frozen": lambda: headrace(path, freeze_after=ROWS),
            "read alone": lambda: consume(read(path)),
            "clean alone": lambda: consume(clean(raw)),
            "to numpy alone": lambda: consume(numpy(ready)),
            "DataLoader, 0 workers": _bound(drain, loader(path, 0)),
            "DataLoader, 2 workers": _bound(drain, loader(path, 2)),
            "DataLoader, frozen, 0 workers": _bound(drain, loader(path, 0, learn=False)),
            "DataLoader, frozen, 2 workers": _bound(drain, loader(path, 2, learn=False)),
        }
        seconds = interleave(runs, rounds=3 if quick else 7)
        cpu = {name: processor(runs[name]) for name in runs if "alone" not in name}
        first = first_batch(path)
    serial = sum(median(seconds[name]) for name in runs if name.endswith("alone"))
    figures = {f"{name}, rows/s": count / median(seconds[name]) for name in runs}
    figures["serial limit, rows/s"] = count / serial
    figures |= {f"{name}, CPU s per million rows": s / count * 1e6 for name, s in cpu.items()}
    figures["headrace, first batch after, s"] = first
    figures["headrace / serial limit"] = serial / median(seconds["headrace"])
    for kind in ("", ", frozen"):
        best = min(median(seconds[f"DataLoader{kind}, {n} workers"]) for n in (0, 2))
        ratio = best / median(seconds[f"headrace{kind}"])
        figures[f"headrace{kind} / best DataLoader{kind}"] = ratio
    report("loading", figures, seconds=seconds, goal="0.85 of the serial limit, 2 x DataLoader")


def write(path: Path, count: int) -> None:
    """The file, in row groups."""
    chance = np.random.default_rng(0)
    x = chance.normal(size=(count, COLUMNS))
    x[chance.random(x.shape) < 0.02] *= 50
    x[chance.random(x.shape) < 0.03] = np.nan
    frame = pl.DataFrame(x, schema=NAMES, nan_to_null=True).with_columns(y=pl.lit(1.0))
    frame.write_parquet(path, row_group_size=GROUP)


def headrace(path: Path, **learn: int) -> int:
    """All batches of a pipeline; how many rows they had."""
    stages: dict[str, dict[str, Any]] = {
        "missing": {"columns": ["x*"], "strategy": "mean"},
        "outliers": {"columns": ["x*"], "method": "zscore", "threshold": 4.0},
        "standardize": {"columns": ["x*"]},
    }
    table: dict[str, Any] = {
        "name": "loading",
        "source": {"kind": "files", "path": str(path)},
        "loader": {"batch_rows": ROWS},
        "scrub": {name: settings | learn for name, settings in stages.items()},
        "model": {"target": "y", "numeric": ["x*"]},
    }
    with Run(Pipeline.of(table)).loader() as batches:
        return sum(len(batch) for batch in batches)


def first_batch(path: Path) -> float:
    """Seconds from nothing to the first batch, median of five."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        table = {"name": "first", "source": {"kind": "files", "path": str(path)}}
        run = Run(Pipeline.of(table, ["model.target=y", 'model.numeric=["x*"]']))
        with run.loader() as batches:
            next(iter(batches))
            taken.append(time.perf_counter() - start)
    return median(taken)


def read(path: Path) -> Iterator[pl.DataFrame]:
    """Row groups, one after the other."""
    scan = pl.scan_parquet(path)
    count = scan.select(pl.len()).collect().item()
    return (scan.slice(start, GROUP).collect() for start in range(0, count, GROUP))


def slices(groups: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Batches of them."""
    return (part for group in groups for part in group.iter_slices(ROWS))


def clean(parts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Fill, clip and scale."""
    return (part.select(CLEAN) for part in parts)


def numpy(parts: Iterable[pl.DataFrame]) -> Iterator[NDArray[np.float32]]:
    """Row by row in memory, as a network reads them."""
    return (part.to_numpy(order="c") for part in parts)


def consume(items: Iterable[object]) -> None:
    """Make each and let it go, as a consumer of batches does."""
    deque(items, maxlen=0)


class Groups(IterableDataset):  # type: ignore[type-arg]
    """Clean batches of the file's row groups, dealt out to the workers."""

    def __init__(self, path: Path, *, learn: bool) -> None:
        self.path = path
        self.learn = learn
        self.moments = Moments.empty(COLUMNS)

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        scan = pl.scan_parquet(self.path)
        count = scan.select(pl.len()).collect().item()
        for start in range(first * GROUP, count, step * GROUP):
            for part in scan.slice(start, GROUP).collect().iter_slices(ROWS):
                made = part.select(self.expressions() if self.learn else CLEAN)
                if self.learn:
                    self.update(part)
                yield torch.from_numpy(made.to_numpy(order="c", writable=True))

    def expressions(self) -> list[pl.Expr]:
        """Fill, clip and scale by what is known now."""
        mean, deviation = self.moments.mean, self.moments.deviation
        scale = np.where(deviation > 0, 1 / np.maximum(deviation, 1e-300), 0.0)
        low, high = mean - 4 * deviation, mean + 4 * deviation
        return [
            ((pl.col(c).fill_null(m).clip(a, b) - m) * s).cast(pl.Float32)
            for c, m, s, a, b in zip(
                NAMES, *(x.tolist() for x in (mean, scale, low, high)), strict=True
            )
        ]

    def update(self, part: pl.DataFrame) -> None:
        """Learn from a batch, by polars; merged as headrace merges."""
        count = part.select(pl.col(NAMES).count()).to_numpy()[0].astype(np.int64)
        mean = part.select(pl.col(NAMES).mean()).to_numpy()[0]
        m2 = part.select(pl.col(NAMES).var(ddof=0)).to_numpy()[0] * count
        self.moments = self.moments.merge(Moments(count=count, mean=mean, m2=m2))


def loader(path: Path, workers: int, *, learn: bool = True) -> DataLoader[torch.Tensor]:
    """As PyTorch's documentation advises: whole batches, workers that stay."""
    return DataLoader(
        Groups(path, learn=learn),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )


def drain(batches: DataLoader[torch.Tensor]) -> int:
    """How many rows there were."""
    return sum(len(batch) for batch in batches)


def processor(run: Callable[[], object]) -> float:
    """CPU seconds of one run, workers included."""
    before = _spent()
    run()
    return _spent() - before


def _spent() -> float:
    me = psutil.Process()
    times = [p.cpu_times() for p in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


def _bound(function: Callable[[Any], object], value: object) -> Callable[[], object]:
    return lambda: function(value)


if __name__ == "__main__":
    main()
