"""Memory under a budget: items of 1 kB to 32 MB, and 100 million rows.

``python -m tests.bench memory``

Each case is a process of its own. The kernel's mark of its highest resident memory is reset after
the imports and a warm-up, and what it is above the memory then is the peak. The consumer takes 5 ms
for each item, so that queues fill up. Items are made when they are read, as from a network. Peers
are bounded by a number of items: torchdata's Prefetcher ahead by 8, PyTorch's DataLoader by its
default of 2 for one worker; a DataLoader's worker counts with its process, what both share once.
Allocators are told to give back what is freed, in every case: what is left is what is held.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
from pydantic import ByteSize

from connectors.formats.values.columns import Columns
from engine.config import LoaderSettings, load_class
from engine.loading.loader import Loader
from engine.scrub import STAGES
from engine.types import EndOfStream, Format, Mark, Records, Rejects, Schema, Source, Values
from tests.bench.measure import report

MIB = 1 << 20
LARGEST = 32_000_000
BUDGETS = (32, 64, 256)
PEERS = ("torchdata Prefetcher", "DataLoader")
WORK = 0.005
GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": str(MIB // 16),
    "MALLOC_TRIM_THRESHOLD_": "0",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0",
}
"""For glibc's allocator and for the one of polars."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/memory.json``."""
    items = 4 if quick else 400
    figures: dict[str, object] = {}
    for budget in BUDGETS[:1] if quick else BUDGETS:
        found = case("headrace", str(budget), str(items))
        figures[f"headrace, {budget} MiB: peak, MiB"] = found["peak"]
        figures[f"headrace, {budget} MiB: above budget and one item, MiB"] = (
            found["peak"] - budget - LARGEST / MIB
        )
    for peer in PEERS:
        figures[f"{peer}: peak, MiB"] = case(peer, "0", str(items))["peak"]
    rows = 20_000 if quick else 100_000_000
    figures |= case("rows", "64", str(rows))
    report("memory", figures, goal="budget and one item at most; 100 M rows flat")


def case(*words: str) -> dict[str, float]:
    """One case in a process of its own; its figures."""
    command = [sys.executable, "-m", "tests.bench.reading.bench_memory", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | GIVE_BACK
    )
    made: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return made


def sizes(count: int) -> list[int]:
    """1 kB to 32 MB, log-uniform, with runs of the largest; always the same."""
    rng = np.random.default_rng(3)
    drawn = np.exp(rng.uniform(np.log(1 << 10), np.log(LARGEST), count)).astype(int)
    for start in range(8, count, 50):
        drawn[start : start + 6] = LARGEST
    made: list[int] = drawn.tolist()
    return made


def made(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An item, every page of it touched."""
    return np.ones(size, np.uint8)


class Items(Source):
    """A source of items, each a record; see `engine.types.Source`."""

    def __init__(self, count: int) -> None:
        self.format: Format = Bytes()
        self._sizes = sizes(count)
        self._at = 0

    def schema(self, declared: Schema) -> Schema:
        return {"item": pl.List(pl.UInt8())}

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if self._at == len(self._sizes):
            raise EndOfStream
        size = self._sizes[self._at]
        self._at += 1
        return Records(
            partition="items",
            positions=np.array([self._at - 1]),
            next=self._at,
            values=Values(data=made(size), bounds=np.array([0, size])),
            arrived=time.monotonic(),
        )

    def seek(self, mark: Mark) -> None:
        self._at = mark.positions.get("items", 0)

    def commit(self, mark: Mark) -> bool:
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        return {}

    def progress(self, mark: Mark) -> float | None:
        return None

    def close(self) -> None: ...


class Bytes(Format):
    """Values as lists of bytes, without a copy. (A Binary column would be copied: polars 2.1 keeps
    the one value of a one-row frame as a scalar, and copies that in every step.)"""

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        values = records.values
        assert isinstance(values, Values)
        array = pa.LargeListArray.from_arrays(values.bounds, pa.array(values.data))
        places = {"_partition": [records.partition] * len(records), "_position": records.positions}
        return pl.DataFrame(places).with_columns(pl.Series("item", array)), []


def headrace(budget: int, count: int) -> Iterable[object]:
    """Batches of one item."""
    settings = LoaderSettings(batch_rows=1, memory_budget=ByteSize(budget * MIB))
    source = Items(count)
    return Loader(source, schema=source.schema({}), settings=settings)


def prefetcher(_: int, count: int) -> Iterable[object]:
    """torchdata's, over the same items."""
    from torchdata.nodes import IterableWrapper, Loader, Prefetcher

    node = Prefetcher(IterableWrapper(map(made, sizes(count))), prefetch_factor=8)
    batches: Iterable[object] = Loader(node)
    return batches


def dataloader(_: int, count: int) -> Iterable[object]:
    """One worker; items are no samples to be put together."""
    from torch.utils.data import DataLoader, IterableDataset

    class Dataset(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return map(made, sizes(count))

    batches: Iterable[object] = DataLoader(Dataset(), batch_size=None, num_workers=1)
    return batches


WAYS: dict[str, Callable[[int, int], Iterable[object]]] = {
    "headrace": headrace,
    "torchdata Prefetcher": prefetcher,
    "DataLoader": dataloader,
}


def peak(way: str, budget: int, count: int) -> dict[str, float]:
    """MiB that a process and its workers had at most, above what it had before."""
    for _ in WAYS[way](budget, 4):
        pass
    Path("/proc/self/clear_refs").write_text("5")
    before, workers = resident("VmRSS"), 0.0
    for item in WAYS[way](budget, count):
        time.sleep(WORK)
        del item  # or the loop would hold it while it waits for the next
        workers = max(workers, sum(map(private, psutil.Process().children())))
    return {"peak": resident("VmHWM") - before + workers}


def resident(name: str) -> float:
    """MiB, of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise AssertionError(name)


def private(process: psutil.Process) -> float:
    """MiB that no other process shares."""
    try:
        return float(process.memory_full_info().uss) / MIB
    except psutil.Error:
        return 0.0


class Stream(Items):
    """Rows of eight float columns, made anew for each read."""

    def __init__(self, count: int) -> None:
        super().__init__(0)
        self.format = Columns()
        self._count = count
        self._rows = np.random.default_rng(0).normal(size=(65_536, 8))

    def schema(self, declared: Schema) -> Schema:
        return {f"x{i}": pl.Float64() for i in range(8)}

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        n = min(max_rows, len(self._rows), max_bytes // 72, self._count - self._at)
        if not n:
            raise EndOfStream
        first, self._at = self._at, self._at + n
        return Records(
            partition="items",
            positions=np.arange(first, self._at),
            next=self._at,
            values=pl.DataFrame(self._rows[:n].copy(), schema=list(self.schema({}))),
            arrived=time.monotonic(),
        )


def rows(budget: int, count: int) -> dict[str, float]:
    """Resident memory after each tenth of that many rows, cleaned and standardized on the way."""
    source = Stream(count)
    schema = source.schema({})
    stages = []
    for name, own in (
        ("missing", {"columns": ["x*"], "strategy": "mean"}),
        ("standardize", {"columns": ["x*"]}),
    ):
        kind = load_class(name, STAGES, "scrub")
        stages.append(kind(name, kind.Settings(**own)))
        schema = stages[-1].bind(schema)
    how = LoaderSettings(batch_rows=8_192, memory_budget=ByteSize(budget * MIB))
    held: list[float] = []
    seen, start = 0, time.perf_counter()
    loader = Loader(source, schema=source.schema({}), stages=stages, settings=how)
    with loader as batches:
        for batch in batches:
            seen += len(batch)
            if seen * 10 >= count * (len(held) + 1):
                held.append(resident("VmRSS"))
    return {
        f"{count:,} rows: resident after a tenth, MiB": held[0],
        f"{count:,} rows: at the end, MiB": held[-1],
        f"{count:,} rows: highest / after a tenth": max(held) / held[0],
        f"{count:,} rows: rows/s": count / (time.perf_counter() - start),
    }


if __name__ == "__main__":
    if len(sys.argv) == 4:
        way, first, second = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        print(json.dumps(rows(first, second) if way == "rows" else peak(way, first, second)))
    else:
        main()
