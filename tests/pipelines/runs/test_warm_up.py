"""What the first record would wait for is done before it comes."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from engine.running.warm_up import synthetic_frame

SOURCE = '''
import json, sys
import numpy as np
import polars as pl
from numba.core import event
from connectors.memory import MemorySource
from engine import types

class Listener(event.Listener):
    def on_start(self, event):
        print("compiled", event.data["dispatcher"].py_func.__qualname__, flush=True)
    def on_end(self, event): ...

class Endless(MemorySource):
    """Says when the first record comes."""

    class Settings(types.Settings): ...

    def __init__(self, settings):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(600, 2))
        frame = pl.DataFrame(x, schema=["a", "b"]).with_columns(
            c=pl.Series(rng.choice(["u", "v"], 600)), n=pl.Series(range(600)),
            y=pl.Series(x @ [1.0, -2.0]),
        )
        gaps = frame.with_columns(
            pl.when(pl.int_range(600) % 7 > 0).then(pl.col("a", "b", "c", "n"))
        )
        super().__init__(MemorySource.Settings(items=[gaps]))

    def unbounded(self):
        return True

    def read(self, *asked):
        if not self.reads:
            event.register("numba:compile", Listener())
            print("the first record", flush=True)
        return super().read(*asked)
'''
PIPELINE = """
name = "first"
source = {kind = "endless:Endless"}
[scrub.missing]
kind = "missing"
columns = ["a", "b", "n"]
[scrub.outliers]
kind = "outliers"
columns = ["a", "b"]
[scrub.robust]
kind = "robust"
columns = ["n"]
[scrub.power]
kind = "power"
columns = ["a"]
[scrub.standardize]
kind = "standardize"
columns = ["b"]
[scrub.drift]
kind = "drift"
columns = ["b"]
[scrub.anomalies]
kind = "anomalies"
columns = ["a", "b"]
[scrub.duplicates]
kind = "duplicates"
by = ["b", "n"]
[scrub.categories]
kind = "categories"
columns = ["c"]
[model]
kind = "tabular"
target = "y"
numeric = ["a", "b", "n"]
categories = ["c"]
[train]
"""


@pytest.mark.full
@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_record(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(SOURCE)
    (tmp_path / "pipeline.toml").write_text(PIPELINE)
    done = subprocess.run(
        [sys.executable, "-m", "engine.commands.cli", "run", "pipeline.toml"],
        cwd=tmp_path,
        env={
            **os.environ,
            "NUMBA_CACHE_DIR": str(tmp_path / "compiled"),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiling the loops of this pipeline") == 1
    assert "the first record" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("compiled")] == []


def test_rows_are_invented_of_every_type() -> None:
    schema = {
        "a": pl.Float32(),
        "b": pl.UInt8(),
        "c": pl.String(),
        "d": pl.Binary(),
        "e": pl.Boolean(),
        "f": pl.Datetime("us", "UTC"),
        "g": pl.Decimal(10, 2),
        "h": pl.List(pl.Int64()),
        "i": pl.Struct({"x": pl.Int64()}),
        "j": pl.Duration("ms"),
        "k": pl.Date(),
        "l": pl.Time(),
        "m": pl.Categorical(),
        "n": pl.Null(),
    }
    made = synthetic_frame(schema, 16)
    assert dict(made.schema) == schema
    assert made.row(7) == made.row(15) == (None,) * len(schema)
    day = datetime.date(1970, 1, 2)
    assert made.row(1)[:5] == (1.0, 1, "1", b"1", True)
    assert made.row(1)[10] == day
    assert made["h"].null_count() == 16
