"""What the tests of all stages share: batches of lists, streams of dirty rows, deep comparison."""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from connectors.memory import MemorySource
from engine.scrub import STAGES
from engine.scrub.side_source import SideSource, SideStage
from engine.types import Batch, Mark, Schema, Stage
from tests.scrub.pictures import some


def photo(height: int = 6, width: int = 9, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """An encoded image with a slope of brightness from left to right."""
    slope = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    file = io.BytesIO()
    Image.fromarray(slope).convert(mode).save(file, kind)
    return file.getvalue()


PHOTOS = [photo(), None, photo(4, 4, "JPEG"), photo(9, 5, "BMP", "L"), b"", photo()[:-30], b"text"]
"""Images, and what is none."""
Make = Callable[..., Any]
Columns = dict[str, list[Any]]


def schema_of(frame: pl.DataFrame) -> Schema:
    return {c: k for c, k in frame.schema.items() if not c.startswith("_")}


def batch_of(frame: pl.DataFrame) -> Batch:
    return Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=frame.height)


def equal(a: Any, b: Any) -> bool:
    """The same plain value, bit by bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, pl.DataFrame):
        return a.schema == b.schema and a.equals(b)
    if isinstance(a, pl.Series):
        return a.dtype == b.dtype and a.equals(b)
    return type(a) is type(b) and bool(a == b)


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    return equal


@pytest.fixture(scope="session")
def stage() -> Make:
    """``stage("missing", columns=["x"], ...)``: the stage by its kind, named ``s``."""

    def make(kind: str, **settings: Any) -> Any:
        module, _, name = STAGES[kind].partition(":")
        made = getattr(importlib.import_module(module), name)
        return beside(made("s", made.Settings(**settings)))

    return make


def beside(stage: Stage) -> Stage:
    """The stage; with dirty rows as what it reads beside the stream, if it does."""
    if isinstance(stage, SideStage) and stage.side_table is not None:
        frames = [dirty(rows, rows).drop("_partition", "_position") for rows in (60, 90)]
        section = f"scrub.{stage.name}.source"
        stage.side = SideSource(section, lambda whole: MemorySource.of(frames), {})
    return stage


@pytest.fixture(scope="session")
def batch() -> Callable[..., Batch]:
    """``batch(x=[1.0, None])``: a batch of these columns, or of a frame."""

    def make(frame: pl.DataFrame | None = None, **columns: list[Any]) -> Batch:
        rows = pl.DataFrame(columns, strict=False) if frame is None else frame
        reserved = [
            pl.lit("p").alias("_partition"),
            pl.int_range(pl.len(), dtype=pl.Int64).alias("_position"),
        ]
        return batch_of(rows.select(*reserved, pl.all()))

    return make


@pytest.fixture(scope="session")
def run(stage: Make, batch: Callable[..., Batch]) -> Callable[..., list[Batch]]:
    """``run("lag", settings, columns, columns, ...)``: the batches that come out."""

    def make(kind: str, settings: dict[str, Any], *parts: Columns | pl.DataFrame) -> list[Batch]:
        made = stage(kind, **settings)
        batches = [batch(p) if isinstance(p, pl.DataFrame) else batch(**p) for p in parts]
        made.bind(schema_of(batches[0].frame))
        return [made.apply(b) for b in batches]

    return make


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is learned before it is changed, not even the first ones of a stream: for tests of
    what batches before teach, with few rows."""
    monkeypatch.setattr("engine.scrub.base.COLD_ROWS", 0)


@functools.cache
def dirty(rows: int, seed: int) -> pl.DataFrame:
    """Rows of every type, with nulls, NaN, infinity, repeated keys and times out of order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(50, 10, rows)
    x[rng.random(rows) < 0.1] = np.nan
    x[rng.random(rows) < 0.05] = np.inf
    x[rng.random(rows) < 0.05] *= 100
    hours = np.arange(rows) // 3 - rng.integers(0, 4, rows)
    times = [datetime(2024, 1, 1) + timedelta(hours=int(h)) for h in hours]
    return pl.DataFrame(
        {
            "_partition": ["p"] * rows,
            "_position": np.arange(rows),
            "key": rng.choice(["a", "b", "ç", ""], rows),
            "time": pl.Series(times, dtype=pl.Datetime("us")),
            "x": x,
            "y": rng.exponential(3, rows),
            "f": rng.normal(0, 1, rows).astype(np.float32),
            "n": rng.integers(-5, 5, rows),
            "text": rng.choice(["red", "green", "blue", "grey", "1", "x"], rows),
            "flag": rng.random(rows) < 0.5,
            "void": pl.Series([None] * rows, dtype=pl.Float64),
            "image": pl.Series(some(rows, seed), dtype=pl.Binary),
            "photo": pl.Series([PHOTOS[i % len(PHOTOS)] for i in range(rows)], dtype=pl.Binary),
        }
    ).with_columns(
        pl.when(pl.Series(rng.random(rows) > 0.15)).then(pl.col(c))
        for c in ("x", "y", "f", "n", "text", "flag", "time")
    )


@pytest.fixture(scope="session")
def rows() -> Callable[[int, int], pl.DataFrame]:
    return dirty


def cut(frame: pl.DataFrame, sizes: Iterable[int]) -> Sequence[Batch]:
    """The frame in batches of these sizes and the rest."""
    batches, at = [], 0
    for size in sizes:
        batches.append(batch_of(frame.slice(at, size)))
        at += size
    return [*batches, batch_of(frame.slice(at))]


@pytest.fixture(scope="session")
def pieces() -> Callable[[pl.DataFrame, Iterable[int]], Sequence[Batch]]:
    return cut
