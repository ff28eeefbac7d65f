"""Parquet to clean, standardized float32 tensors: headrace against the serial limit and the loaders
people use.

``python -m tests.bench loading``

32 float columns with 3 % nulls and 2 % outliers, batches of 8,192 rows. The serial limit is what
remains when reading, cleaning and turning to numpy are each done alone, one after the other, with
polars at its best: whole row groups read, expressions made once, statistics known beforehand.
headrace learns its statistics on the way (three stages, one each), checks types and labels, and
says where to resume. The others (`loaders.py`) are measured where they are installed
(``pip install spdl grain datasets ray tensorflow``); they learn one statistic on the way. "frozen"
is without learning.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.config import Pipeline
from engine.run import Run
from tests.bench.measure import interleave, median, report
from tests.bench.reading.loaders import CLEAN, COLUMNS, GROUP, NAMES, ROWS, Peer, installed, spent

GROUPS = 31
"""4 M rows."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/loading.json``."""
    count = 2 * ROWS if quick else GROUP * GROUPS
    with TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "rows.parquet"
        write(path, count)
        raw = list(slices(read(path)))[:: 1 if quick else GROUPS // 4]  # all would fill the memory
        ready = list(clean(raw))
        part = count / sum(frame.height for frame in raw)
        runs: dict[str, Callable[[], object]] = {
            "headrace": lambda: headrace(path),
            "headrace, frozen": lambda: headrace(path, freeze_after=ROWS),
            "read alone": lambda: consume(read(path)),
            "clean alone": lambda: consume(clean(raw)),
            "to numpy alone": lambda: consume(numpy(ready)),
        }
        peers = {
            name + ("" if learn else ", frozen"): stack.enter_context(
                closing(Peer(name, path, learn=learn))
            )
            for learn in ((True,) if quick else (True, False))
            for name in installed(learn=learn, quick=quick)
        }
        seconds = interleave(
            runs | {name: peer.run for name, peer in peers.items()}, rounds=3 if quick else 5
        )
        cpu = {name: processor(runs[name]) for name in ("headrace", "headrace, frozen")}
        cpu |= {name: median(peer.cpu) for name, peer in peers.items()}
        first = {"headrace": first_batch(path)}
        first |= {name: median(peer.first) for name, peer in peers.items()}
    for name in ("clean alone", "to numpy alone"):
        seconds[name] = [s * part for s in seconds[name]]
    serial = sum(median(seconds[name]) for name in runs if name.endswith("alone"))
    figures = {f"{name}, rows/s": count / median(taken) for name, taken in seconds.items()}
    figures["serial limit, rows/s"] = count / serial
    figures |= {f"{name}, CPU s per million rows": s / count * 1e6 for name, s in cpu.items()}
    figures |= {f"{name}, first batch after, s": s for name, s in first.items()}
    figures["headrace / serial limit"] = serial / median(seconds["headrace"])
    for name in peers:
        own = "headrace, frozen" if name.endswith("frozen") else "headrace"
        figures[f"{own} / {name}"] = median(seconds[name]) / median(seconds[own])
    report(
        "loading",
        figures,
        seconds=seconds,
        goal="0.85 of the serial limit, 2 x the best of the others",
    )


def write(path: Path, count: int) -> None:
    """The file, in row groups."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, COLUMNS))
    x[rng.random(x.shape) < 0.02] *= 50
    x[rng.random(x.shape) < 0.03] = np.nan
    frame = pl.DataFrame(x, schema=NAMES, nan_to_null=True).with_columns(y=pl.lit(1.0))
    frame.write_parquet(path, row_group_size=GROUP)


def pipeline(path: Path, **learn: int) -> Pipeline:
    """Fill, clip and scale by what is learned on the way."""
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
    return Pipeline.of(table)


def headrace(path: Path, **learn: int) -> int:
    """All batches of a pipeline; how many rows they had."""
    with Run(pipeline(path, **learn)).loader() as batches:
        return sum(len(batch) for batch in batches)


def first_batch(path: Path) -> float:
    """Seconds from nothing to the first batch, median of five."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        with Run(pipeline(path)).loader() as batches:
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


def processor(run: Callable[[], object]) -> float:
    """CPU seconds of one run, workers included."""
    before = spent()
    run()
    return spent() - before


if __name__ == "__main__":
    main()
