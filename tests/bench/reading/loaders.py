"""Other loaders over the same Parquet file, with the same cleaning: each as its documentation
advises for a file of row groups, two workers where it takes a number. The statistics are learned on
the way, by polars, shared by threads, a process its own; or known beforehand.

Each runs in a process of its own, which stays: frameworks that are only waiting leave the cores to
whoever is measured. ``python -m tests.bench.reading.loaders NAME FILE learn|frozen`` is that
process: a line in is a run, a line out says how many rows it had, seconds until the first batch,
and seconds on processors.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow.parquet as pq
import torch

from engine.columnar.statistics import Moments

ROWS, GROUP, COLUMNS = 8_192, 131_072, 32
NAMES = [f"x{i}" for i in range(COLUMNS)]
FILL, LOW, HIGH, SCALE = 0.01, -4.1, 4.2, 0.9
CLEAN = [
    ((pl.col(c).fill_null(FILL).clip(LOW, HIGH) - FILL) * SCALE).cast(pl.Float32) for c in NAMES
]
"""Fill, clip and scale, with numbers that cost nothing to learn."""
WORKERS = 2


class Cleaner:
    """Frames to clean tensors of 8,192 rows.

    Args:
        learn: mean and deviation of all batches before are what fills, clips and scales.
    """

    def __init__(self, *, learn: bool) -> None:
        self._learn = learn
        self._moments = Moments.empty(COLUMNS)
        self._lock = threading.Lock()

    def __call__(self, frame: pl.DataFrame) -> list[torch.Tensor]:
        return [self._tensor(part) for part in frame.iter_slices(ROWS)]

    def __getstate__(self) -> dict[str, Any]:
        return {"_learn": self._learn, "_moments": self._moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _tensor(self, part: pl.DataFrame) -> torch.Tensor:
        made = part.select(self._expressions() if self._learn else CLEAN)
        if self._learn:
            self._update(part)
        return torch.from_numpy(made.to_numpy(order="c", writable=True))

    def _expressions(self) -> list[pl.Expr]:
        known = self._moments
        mean, deviation = known.mean, known.deviation
        scale = np.where(deviation > 0, 1 / np.maximum(deviation, 1e-300), 0.0)
        numbers = (mean, scale, mean - 4 * deviation, mean + 4 * deviation)
        return [
            ((pl.col(c).fill_null(m).clip(low, high) - m) * s).cast(pl.Float32)
            for c, m, s, low, high in zip(NAMES, *(x.tolist() for x in numbers), strict=True)
        ]

    def _update(self, part: pl.DataFrame) -> None:
        count = part.select(pl.col(NAMES).count()).to_numpy()[0].astype(np.int64)
        mean = part.select(pl.col(NAMES).mean()).to_numpy()[0]
        m2 = part.select(pl.col(NAMES).var(ddof=0)).to_numpy()[0] * count
        with self._lock:
            self._moments = self._moments.merge(Moments(count=count, mean=mean, m2=m2))


def group(path: Path, number: int) -> pl.DataFrame:
    """A row group."""
    return pl.scan_parquet(path, glob=False).slice(number * GROUP, GROUP).collect()


def groups(path: Path) -> int:
    """How many there are."""
    return int(pq.read_metadata(path).num_row_groups)


def dataloader(path: Path, clean: Cleaner, workers: int) -> Callable[[], Iterable[torch.Tensor]]:
    """PyTorch: an iterable dataset of whole batches, row groups dealt out to workers that stay."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Groups(path, clean),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: loader


class Groups(torch.utils.data.IterableDataset[torch.Tensor]):
    """Clean batches of the row groups that are this worker's."""

    def __init__(self, path: Path, clean: Cleaner) -> None:
        self.path = path
        self.clean = clean

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number in range(first, groups(self.path), step):
            yield from self.clean(group(self.path, number))


def nodes(path: Path, clean: Cleaner) -> Callable[[], Iterable[torch.Tensor]]:
    """torchdata.nodes: row groups mapped in threads, unbatched, prefetched."""
    from torchdata.nodes import IterableWrapper, Loader, ParallelMapper, Prefetcher, Unbatcher

    def made() -> Iterator[torch.Tensor]:
        numbers = IterableWrapper(range(groups(path)))
        mapped = ParallelMapper(
            numbers,
            lambda number: clean(group(path, number)),
            num_workers=WORKERS,
            method="thread",
        )
        yield from Loader(Prefetcher(Unbatcher(mapped), 8))

    return made


def spdl(path: Path, clean: Cleaner) -> Callable[[], Iterable[torch.Tensor]]:
    """SPDL: row groups piped through threads, taken apart, a sink of eight."""
    from spdl.pipeline import PipelineBuilder

    def made() -> Iterator[torch.Tensor]:
        pipeline = (
            PipelineBuilder()
            .add_source(range(groups(path)))
            .pipe(lambda number: clean(group(path, number)), concurrency=WORKERS)
            .disaggregate()
            .add_sink(8)
            .build(num_threads=WORKERS)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return made


def grain(path: Path, clean: Cleaner) -> Callable[[], Iterable[torch.Tensor]]:
    """Grain: a map over row groups, read ahead by its threads."""
    import grain

    data = grain.MapDataset.range(groups(path)).map(lambda number: clean(group(path, number)))
    ahead = grain.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=2)

    def made() -> Iterator[torch.Tensor]:
        for parts in data.to_iter_dataset(ahead):
            yield from parts

    return made


def datasets(path: Path, clean: Cleaner) -> Callable[[], Iterable[torch.Tensor]]:
    """Hugging Face datasets: a stream of Arrow batches, cleaned as polars frames."""
    from datasets import load_dataset

    def made() -> Iterator[torch.Tensor]:
        data = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for part in data.with_format("polars").iter(batch_size=ROWS):
            yield from clean(part)

    return made


def ray(path: Path, clean: Cleaner) -> Callable[[], Iterable[torch.Tensor]]:
    """Ray Data: Arrow batches mapped by tasks, PyTorch batches out."""
    import ray
    from ray.data import read_parquet

    ray.init(num_cpus=WORKERS, logging_level="ERROR", log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def cleaned(table: Any) -> dict[str, Any]:
        frame = pl.DataFrame(table)
        return {"x": frame.select(CLEAN).to_numpy(order="c", writable=True)}

    def made() -> Iterator[torch.Tensor]:
        data = read_parquet(str(path)).map_batches(cleaned, batch_format="pyarrow", batch_size=ROWS)
        for part in data.iter_torch_batches(batch_size=ROWS, prefetch_batches=4):
            yield part["x"]

    return made


def tfdata(path: Path, clean: Cleaner) -> Callable[[], Iterable[Any]]:
    """tf.data: row groups read in parallel, cleaned by TensorFlow's own operations, prefetched."""
    import tensorflow as tf

    auto = tf.data.AUTOTUNE

    def read(number: Any) -> Any:
        frame = group(path, int(number)).select(NAMES)
        return frame.to_numpy(order="c")

    def load(number: Any) -> Any:
        rows = tf.numpy_function(read, [number], tf.float64)
        rows.set_shape([None, COLUMNS])
        return tf.data.Dataset.from_tensor_slices(rows).batch(ROWS)

    def cleaned(x: Any) -> Any:
        x = tf.where(tf.math.is_nan(x), tf.constant(FILL, tf.float64), x)
        return tf.cast((tf.clip_by_value(x, LOW, HIGH) - FILL) * SCALE, tf.float32)

    def made() -> Any:
        numbers = tf.data.Dataset.range(groups(path))
        rows = numbers.interleave(load, cycle_length=WORKERS, num_parallel_calls=auto)
        return rows.map(cleaned, num_parallel_calls=auto).prefetch(auto)

    return made


Loaders = Callable[[Path, Cleaner], Callable[[], Iterable[Any]]]
LOADERS: dict[str, tuple[str, Loaders]] = {
    "DataLoader, 0 workers": ("torch", partial(dataloader, workers=0)),
    "DataLoader, 2 workers": ("torch", partial(dataloader, workers=2)),
    "torchdata.nodes": ("torchdata", nodes),
    "SPDL": ("spdl", spdl),
    "Grain": ("grain", grain),
    "Hugging Face datasets": ("datasets", datasets),
    "Ray Data": ("ray", ray),
    "tf.data": ("tensorflow", tfdata),
}
"""Name -> the module it needs, and what makes one."""
LEARN = ("frozen", "learn")
FROZEN = ("Ray Data", "tf.data")
"""Those that have no place for a statistic that is learned on the way."""


class Peer:
    """A loader in a process of its own.

    Args:
        module: that has the loader, with a `main` as this one's.

    Attributes:
        first: seconds until the first batch, each run.
        cpu: seconds on processors, each run.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        learn: bool = False,
        module: str = "tests.bench.reading.loaders",
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, name, str(path), LEARN[learn]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.first: list[float] = []
        self.cpu: list[float] = []

    def run(self) -> int:
        """All batches; how many rows they had. Raises: RuntimeError where the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a loader's process has ended")
        said = json.loads(line)
        self.first.append(said["first"])
        self.cpu.append(said["cpu"])
        return int(said["rows"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def installed(*, learn: bool, quick: bool = False) -> list[str]:
    """Names of the loaders that are there; quick, one of each library."""
    there = [name for name, (module, _) in LOADERS.items() if importlib.util.find_spec(module)]
    there = [name for name in there if not (learn and name in FROZEN)]
    return list({LOADERS[name][0]: name for name in there}.values()) if quick else there


def main(name: str, path: Path, learn: str) -> None:
    """Run at each line that comes in."""
    serve(LOADERS[name][1](path, Cleaner(learn=learn == "learn")))


def serve(make: Callable[[], Iterable[Any]]) -> None:
    """Go through what `make` makes at each line that comes in, and say what came."""
    out = sys.stdout
    sys.stdout = sys.stderr  # frameworks talk
    for _ in sys.stdin:
        rows, first = 0, 0.0
        start, before = time.perf_counter(), spent()
        for batch in make():
            first = first or time.perf_counter() - start
            rows += len(batch)
        print(json.dumps({"rows": rows, "first": first, "cpu": spent() - before}), file=out)
        out.flush()


def spent() -> float:
    """Seconds on processors of this process and all below it so far."""
    me = psutil.Process()
    times = [p.cpu_times() for p in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system for t in times))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
