"""``headrace explore`` on a large file: rows a second, and memory that does not grow with the rows.

``python -m tests.bench explore``

Ten columns (six of floats, two of whole numbers, one text, one time) as Parquet. Beside it polars'
``describe``, which gives count, mean, deviation and quartiles of a frame that is in memory as a
whole: another question, but the nearest that is in use everywhere. Each run is a process of its
own, so that its peak is its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tests.bench.measure import median, report

PART = 100_000
PEAK = "import resource; print(time.perf_counter() - start, resource.getrusage(0).ru_maxrss)"
RUNS = {
    "explore": "from engine.explore import explore; explore('{path}', rows=1000)",
    "polars describe": "import polars as pl",
}
"""What is done before the clock starts: imports, compilation."""
WORK = {
    "explore": "explore('{path}')",
    "polars describe": "pl.read_parquet('{path}').describe()",
}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/explore.json``."""
    rows = PART // 20 if quick else PART
    sizes = (rows,) if quick else (10 * rows, 100 * rows)
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        for count in sizes:
            with written(Path(folder), count, rows) as path:
                for _ in range(3):
                    for name in RUNS:
                        key = f"{name}, {count:,} rows"
                        wall, peak = run(name, path)
                        seconds.setdefault(key, []).append(wall)
                        peaks[key] = max(peaks.get(key, 0.0), peak)
    figures = {}
    for key, taken in seconds.items():
        rows = int(key.rpartition(", ")[2].removesuffix(" rows").replace(",", ""))
        figures[f"{key}, rows/s"] = rows / median(taken)
        figures[f"{key}, peak MiB"] = peaks[key] / 1024
    small, large = (f"explore, {sizes[end]:,} rows" for end in (0, -1))
    figures["explore, peak of the large over the small"] = peaks[large] / peaks[small]
    report("explore", figures, seconds=seconds, goal="1 M rows/s, memory flat")


@contextmanager
def written(folder: Path, count: int, rows: int) -> Iterator[Path]:
    """The file, as a folder of parts of so many rows."""
    place = folder / str(count)
    place.mkdir()
    for number, start in enumerate(range(0, count, rows)):
        part(start, rows).write_parquet(place / f"{number:03}.parquet")
    yield place / "*.parquet"


def part(start: int, n: int) -> pl.DataFrame:
    """Rows `start` to `start` + `n`."""
    rng = np.random.default_rng(start)
    first = datetime(2020, 1, 1) + timedelta(seconds=start)
    columns = {f"x{i}": rng.normal(size=n) for i in range(6)}
    times = pl.datetime_range(first, first + timedelta(seconds=n - 1), "1s", eager=True)
    return pl.DataFrame(
        {
            **columns,
            "count": rng.integers(0, 1_000_000, n),
            "label": rng.integers(0, 2, n),
            "kind": rng.choice(["north", "east", "south", "west"], n),
            "time": times,
        }
    )


def run(name: str, path: Path) -> tuple[float, float]:
    """Seconds of the work, and the process's peak in KiB."""
    script = f"{RUNS[name]}\nimport time; start = time.perf_counter()\n{WORK[name]}\n{PEAK}"
    done = subprocess.run(
        [sys.executable, "-c", script.format(path=path)], capture_output=True, text=True, check=True
    )
    taken, peak = done.stdout.split()[-2:]
    return float(taken), float(peak)


if __name__ == "__main__":
    main()
