"""A small pipeline in a folder of its own, and the real command on it."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.commands.cli import main
from engine.observing import logs

Headrace = Callable[..., tuple[int, str, str]]
Rows = Callable[..., pl.DataFrame]
Small = Callable[..., Path]

PIPELINE = """
name = "small"
folder = {folder}
[source]
kind = "files"
path = {data}
[source.schema]
a = "float64"
b = "float64"
n = "int64"
key = "string"
y = "float64"
[loader]
batch_rows = 100
[scrub.missing]
columns = ["a"]
strategy = "mean"
[scrub.standardize]
columns = ["a", "b"]
[scrub.categories]
columns = ["key"]
size = 8
[model]
target = "y"
numeric = ["a", "b"]
categories = ["key"]
layers = [8]
[train]
optimizer = "adam"
replay_rows = 0
threads = 1
[evaluation]
window = 1000
[checkpoint]
interval_batches = 4
[sink]
kind = "files"
path = {out}
"""


def rows_of(n: int = 1_000, seed: int = 3) -> pl.DataFrame:
    """The small pipeline's rows: one in twenty lacks its `a`."""
    rng = np.random.default_rng(seed)
    a = np.round(rng.normal(size=n), 6)
    frame = pl.DataFrame(
        {
            "a": a,
            "b": np.round(rng.normal(5, 2, n), 6),
            "n": np.arange(n),
            "key": rng.choice(["n", "e", "s", "w"], n),
            "y": np.round(3 * a + rng.normal(size=n), 6),
        }
    )
    gone = pl.Series(rng.random(n) < 0.05)
    return frame.with_columns(a=pl.when(gone).then(None).otherwise(pl.col("a")))


@pytest.fixture
def rows() -> Rows:
    """Makes the small pipeline's rows."""
    return rows_of


def small_in(
    folder: Path, data: Path, *changes: tuple[str, str], more: str = "", name: str = "small"
) -> Path:
    """The small pipeline's file, in a folder with all that it leaves: on which data, with which
    texts replaced, and what is added behind."""
    run, out = (json.dumps(str(folder / part)) for part in ("run", "out"))
    text = PIPELINE.format(folder=run, data=json.dumps(str(data)), out=out)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file = folder / f"{name}.toml"
    file.write_text(text + more)
    return file


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """Writes the small pipeline's file; see `small_in`."""
    return functools.partial(small_in, tmp_path)


@pytest.fixture
def headrace(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Headrace]:
    """The command in this process: exit code, standard output, standard error. Puts back the
    logging it set up."""
    # A process begins without secrets: another test's password may be a word of a sentence here.
    monkeypatch.setattr(logs, "_hidden", logs._Hidden())
    root, own = logging.getLogger(), logging.getLogger("headrace")
    before = root.handlers[:], root.level, own.level

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    yield call
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.captureWarnings(False)


@pytest.fixture
def letters(tmp_path: Path) -> Callable[[], pl.DataFrame]:
    """Reads the small pipeline's dead letters, in the order of their positions."""

    def read() -> pl.DataFrame:
        parts = sorted((tmp_path / "run" / "dead_letters").glob("*.ndjson"))
        assert parts, "no dead letters"
        return pl.concat([pl.read_ndjson(part) for part in parts], how="diagonal").sort("_position")

    return read


@pytest.fixture
def results(tmp_path: Path) -> Callable[[], pl.DataFrame]:
    """Reads what the small pipeline wrote to its sink, in the order of the parts."""

    def read() -> pl.DataFrame:
        return pl.concat(
            [pl.read_parquet(part) for part in sorted((tmp_path / "out").glob("*.parquet"))]
        )

    return read


@pytest.fixture
def counted(tmp_path: Path) -> Callable[[], dict[str, float]]:
    """Reads the run's final metrics: family -> sum over its labels."""

    def read() -> dict[str, float]:
        sums: dict[str, float] = {}
        for line in (tmp_path / "run" / "metrics.prom").read_text().splitlines():
            if found := re.fullmatch(r"([a-z_]+)(?:\{.*\})? (\S+)", line):
                sums[found[1]] = sums.get(found[1], 0.0) + float(found[2])
        return sums

    return read


@pytest.fixture
def totals() -> Callable[[Path], Any]:
    """What a pipeline file's newest checkpoint says became of every record."""
    from engine.run import Run
    from engine.running.totals import Totals

    def read(file: Path) -> Totals:
        run = Run(file)
        state = run.checkpoints.load(run.identity)
        assert state is not None
        return Totals.restore(state["totals"])

    return read
