"""How well fraud is told when it comes, where reports come hours later, beside River and
scikit-learn.

``python -m tests.bench fraud``

The pipeline that is shipped, on all of its payments: the average precision, over their second half,
of the probability that each payment had when it came. River's Hoeffding tree reads the same columns
and learns each label when the pipeline can: a report when it comes, that there was none a day
later. scikit-learn's boosting has learned the first half once, and all of its labels.
"""

from __future__ import annotations

import heapq
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from engine.run import Run
from tests.bench.measure import report

PIPELINES = Path(__file__).parents[3] / "deploy" / "pipelines"
WINDOWS = [
    f"{column}_{length}"
    for column in ("f1_count", "f2_mean", "f2_deviation", "f9_mean", "f9_deviation")
    for length in ("1d", "7d")
]
COLUMNS = [*(f"f{i}" for i in range(1, 10)), *WINDOWS]
"""What the pipeline's model reads."""
HORIZON = timedelta(days=1)


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/fraud.json``."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = answers(Path(folder), 4_000 if quick else None)
    from sklearn.metrics import average_precision_score

    half = len(rows) // 2
    truth = rows["reported"].is_not_null().to_numpy()
    scores = {
        "headrace": rows["probability"].to_numpy(),
        "River's Hoeffding tree": hoeffding(rows),
        "scikit-learn's boosting": boosting(rows, truth, half),
    }
    figures = {
        f"average precision, {name}": round(
            float(average_precision_score(truth[half:], each[half:])), 4
        )
        for name, each in scores.items()
    }
    figures["average precision by chance"] = round(float(truth[half:].mean()), 4)
    report("fraud", figures, goal="above River's Hoeffding tree")


def answers(folder: Path, rows: int | None) -> pl.DataFrame:
    """The payments whose label is known, in their order, with what was said of each when it came;
    ``reported`` is the time of its report, or null."""
    make = [sys.executable, str(PIPELINES / "fraud.py"), str(folder)]
    subprocess.run([*make, *([str(rows)] if rows else [])], check=True)
    sets = {
        "folder": folder / "run",
        "source.path": folder / "payments.parquet",
        "labels.source.path": folder / "reports.parquet",
        "sink.path": folder / "out",
        "sink.columns": ["payment", "at", *COLUMNS, "probability"],
        "service.port": 0,
        "export.compress": "false",
    }
    Run(PIPELINES / "fraud.toml", [f"{key}={value}" for key, value in sets.items()]).run()
    reports = pl.read_parquet(folder / "reports.parquet")
    reports = reports.select("payment", reported="at")
    answered = pl.read_parquet(folder / "out" / "*.parquet").sort("payment")
    answered = answered.join(reports, on="payment", how="left").sort("payment")
    last = answered.filter(pl.col("reported").is_null())["at"].max()
    return answered.filter(pl.col("at") <= last)  # of what comes later only fraud is known


def hoeffding(rows: pl.DataFrame) -> NDArray[np.float64]:
    """What River's tree says of each payment when it comes; labels are learned when they come."""
    from river import tree

    model: Any = tree.HoeffdingTreeClassifier()
    said = []
    waiting: list[tuple[Any, int, dict[str, float], bool]] = []
    columns = rows.select(COLUMNS).iter_rows(named=True)
    for i, (at, reported, row) in enumerate(
        zip(rows["at"], rows["reported"], columns, strict=True)
    ):
        while waiting and waiting[0][0] <= at:
            _, _, known, fraud = heapq.heappop(waiting)
            model.learn_one(known, fraud)
        said.append(model.predict_proba_one(row).get(True, 0.0))
        due = at + HORIZON if reported is None else reported
        heapq.heappush(waiting, (due, i, row, reported is not None))
    return np.array(said)


def boosting(rows: pl.DataFrame, truth: NDArray[np.bool_], half: int) -> NDArray[np.float64]:
    """What a boosting that has learned the first half says of all."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    x = rows.select(COLUMNS).to_numpy()
    model = HistGradientBoostingClassifier().fit(x[:half], truth[:half])
    return np.asarray(model.predict_proba(x)[:, 1])


if __name__ == "__main__":
    main()
