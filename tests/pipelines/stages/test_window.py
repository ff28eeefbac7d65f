"""Windows of a key from files to a file, in one run and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

Headrace = Callable[..., tuple[int, str, str]]
PIPELINE = """
name = "spend"
folder = {run}
[source]
kind = "files"
path = {data}
[loader]
batch_rows = {batch_rows}
[scrub.spend]
kind = "window"
by = ["card"]
time = "at"
length = ["5m", "1h"]
resolution = "10s"
lateness = "1m"
aggregates = {{ amount = ["sum", "mean", "deviation"], shop = ["count", "distinct"] }}
[sink]
kind = "files"
path = {out}
format = "parquet"
"""


def pipeline(folder: Path, batch_rows: int) -> Path:
    """A pipeline over the files of the folder."""
    places = {"run": "run", "data": "*.csv", "out": "out"}
    shown = {key: json.dumps(str(folder / name)) for key, name in places.items()}
    file = folder / "spend.toml"
    file.write_text(PIPELINE.format(**shown, batch_rows=batch_rows))
    return file


def written(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "out" / "*.parquet").select(pl.exclude("^_.*$")).sort("row")


def test_a_resumed_run_sees_the_same_to_the_bit(tmp_path: Path, headrace: Headrace) -> None:
    rng = np.random.default_rng(0)
    seconds = 1_700_000_000 + np.arange(400) * 7 - rng.integers(0, 40, 400)
    rows = pl.DataFrame(
        {
            "row": np.arange(400),
            "card": rng.choice(["a", "b", "c"], 400),
            "at": pl.Series(seconds * 1_000_000).cast(pl.Datetime("us")),
            "amount": rng.exponential(9, 400),
            "shop": rng.choice(["x", "y", "z"], 400),
        }
    )
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
        rows.head(250).write_csv(folder / "1.csv")
    rows.tail(150).write_csv(once / "2.csv")
    code, out, err = headrace("check", pipeline(once, 64))
    assert code == 0, out + err
    code, _, err = headrace("run", pipeline(once, 64))
    assert code == 0, err
    assert headrace("run", pipeline(twice, 13))[0] == 0
    rows.tail(150).write_csv(twice / "2.csv")
    code, _, err = headrace("run", pipeline(twice, 13))
    assert code == 0, err
    frame = written(once)
    assert frame.height == 400
    assert "shop_distinct_1h" in frame.columns
    assert frame["shop_count_1h"].max() > frame["shop_count_5m"].max() > 3  # type: ignore[operator]
    assert frame.equals(written(twice))
