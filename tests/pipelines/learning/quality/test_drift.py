"""A pipeline that notices drift, starts its statistics anew, and tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError


def pipeline(folder: Path, scrub: dict[str, Any]) -> Pipeline:
    """A level that jumps at row 4,000 of 8,000."""
    rng = np.random.default_rng(1)
    x = rng.normal(10, 2, 8_000) + np.where(np.arange(8_000) < 4_000, 0, 60)
    pl.DataFrame({"x": x}).write_parquet(folder / "data.parquet")
    return Pipeline.of(
        {
            "name": "drift",
            "folder": str(folder / "run"),
            "source": {"kind": "files", "path": str(folder / "data.parquet")},
            "loader": {"batch_rows": 500},
            "scrub": scrub,
            "sink": {"kind": "files", "path": str(folder / "out")},
        }
    )


@pytest.mark.parametrize("detector", ["adwin", "page_hinkley", "psi"])
def test_drift_is_counted_and_forgotten(
    tmp_path: Path,
    detector: str,
    counted: Callable[[], dict[str, float]],
    results: Callable[[], pl.DataFrame],
) -> None:
    watch = {"kind": "drift", "columns": ["x"], "detector": detector}
    scale = {"kind": "standardize", "columns": ["x"], "forget_on": "watch"}
    made = pipeline(tmp_path, {"watch": watch, "scale": scale})
    assert Run(made).run().totals.balanced
    page = (tmp_path / "run" / "metrics.prom").read_text()
    assert f'headrace_drift_detections_total{{detector="{detector}"}} 1.0' in page
    assert counted()["headrace_drift_detections_total"] == 1
    x = results()["x"]
    assert abs(x[-2_000:].mean()) < 0.1  # type: ignore[operator, arg-type]
    assert x[-2_000:].std() == pytest.approx(1, abs=0.1)


def test_forgetting_on_a_later_stage_stops_the_run(tmp_path: Path) -> None:
    scale = {"kind": "standardize", "columns": ["x"], "forget_on": "watch"}
    made = pipeline(tmp_path, {"scale": scale, "watch": {"kind": "drift", "columns": ["x"]}})
    with pytest.raises(UserError, match=r"no 'drift' stage of that name stands before it"):
        Run(made).run()


@pytest.mark.parametrize("how", ["error", "watch"])
def test_a_model_follows_change(
    tmp_path: Path,
    how: str,
    counted: Callable[[], dict[str, float]],
    results: Callable[[], pl.DataFrame],
) -> None:
    """The sign of the label's rule turns at row 4,000, and the level of a column with it."""
    rng = np.random.default_rng(1)
    x, level = rng.normal(size=8_000), np.where(np.arange(8_000) < 4_000, 0, 60)
    frame = pl.DataFrame({"x": x, "z": rng.normal(size=8_000) + level, "y": (x > 0) ^ (level > 0)})
    frame.write_parquet(tmp_path / "data.parquet")
    model = {"kind": "linear", "numeric": ["x"], "target": "y", "task": "binary"}
    watch = {"kind": "drift", "columns": ["z"], "detector": "page_hinkley"}
    made = {
        "name": "follow",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "data.parquet")},
        "scrub": {"watch": watch},
        "model": model,
        "train": {"lr": 0.001, "forget_on": how},
        "sink": {"kind": "files", "path": str(tmp_path / "out")},
    }
    assert Run(Pipeline.of(made)).run().totals.balanced
    page = (tmp_path / "run" / "metrics.prom").read_text()
    for outcome in ("begun", "won"):
        assert f'headrace_challenges_total{{outcome="{outcome}"}} 1.0' in page
    answers = results()[-2_000:]
    right = answers["prediction"] == answers["y"].cast(pl.String)
    assert right.to_numpy().mean() > 0.95
    with pytest.raises(UserError, match=r"add \[scrub.wacht\]. Did you mean 'watch'\?"):
        _ = Run(Pipeline.of(made | {"train": {"forget_on": "wacht"}})).learner
