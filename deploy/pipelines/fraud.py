"""Makes the streams that `fraud.toml` reads: payments, and reports of fraud that come later.

``python deploy/pipelines/fraud.py FOLDER [ROWS]``

The rows are River's Shuttle, in their order, where 7 in 100 are of a rare class: here they are
fraud. What Shuttle lacks is made: a payment comes every two minutes, its card is the hash of a
column, and a fraud is reported 1 to 24 hours later, drawn by a fixed seed; of the others nothing is
ever reported.
"""

from __future__ import annotations

import sys
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl

START = datetime(2026, 1, 1)
EVERY, SOONEST, LATEST = 120, 3_600, 86_400
"""Seconds between two payments, and from a fraud to its report."""
CARDS = 50


def payments(rows: int | None = None) -> pl.DataFrame:
    """Return payments with the truth in the column fraud: payment, at, card, f1 to f9."""
    table = pl.read_csv(str(files("river").joinpath("datasets/shuttle.csv.gz")), n_rows=rows)
    seconds = pl.duration(seconds=pl.int_range(pl.len()) * EVERY)
    mixed = (pl.col("f1") * 2_654_435_761) % 4_294_967_296  # Knuth's multiplicative hash
    return table.select(
        payment=pl.int_range(pl.len()),
        at=pl.lit(START).cast(pl.Datetime("us")) + seconds,
        card=pl.format("card-{}", mixed % CARDS),
        fraud=pl.when(pl.col("anomaly") == 1).then(pl.lit("yes")).otherwise(pl.lit("no")),
        **{f"f{i}": pl.col(f"f{i}").cast(pl.Float64) for i in range(1, 10)},
    )


def reports(rows: pl.DataFrame) -> pl.DataFrame:
    """Return what is reported of the payments, in the order of time: payment, at, fraud."""
    frauds = rows.filter(fraud="yes").select("payment", "at", "fraud")
    seconds = np.random.default_rng(0).integers(SOONEST, LATEST, len(frauds))
    late = pl.lit(pl.Series(seconds * 1_000_000).cast(pl.Duration("us")))
    return frauds.with_columns(at=pl.col("at") + late).sort("at", maintain_order=True)


def write(folder: Path, rows: int | None = None) -> None:
    """Write payments.parquet, without the truth, and reports.parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    table = payments(rows)
    table.drop("fraud").write_parquet(folder / "payments.parquet")
    reports(table).write_parquet(folder / "reports.parquet")


if __name__ == "__main__":
    write(Path(sys.argv[1]), *map(int, sys.argv[2:]))
