"""Baselines and slices see columns as they are before they are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError


def pipeline(folder: Path, scrub: dict[str, Any]) -> Pipeline:
    rows = pl.DataFrame({"x": [float(50 + i % 7) for i in range(400)]})
    rows = rows.with_columns(y=pl.col("x") + 2.5, n=pl.int_range(pl.len()))
    rows.write_parquet(folder / "rows.parquet")
    return Pipeline.of(
        {
            "name": "scaled",
            "folder": str(folder / "run"),
            "source": {"kind": "files", "path": str(folder / "rows.parquet")},
            "loader": {"batch_rows": 64},
            "scrub": scrub,
            "model": {"target": "y", "numeric": ["x"], "layers": [4]},
            "train": {"replay_rows": 0},
            "evaluation": {"baselines": {"x": "x"}, "slices": {"above": "x > 53.5"}},
        }
    )


@pytest.mark.parametrize("kind", ["standardize", "normalize", "robust", "power"])
def test_a_baseline_on_a_scaled_column_has_its_true_error(kind: str, tmp_path: Path) -> None:
    made = pipeline(tmp_path, {kind: {"columns": ["x"]}, "missing": {"columns": ["x"]}})
    report = Run(made).run(fresh=True).report
    assert report["all"]["baselines"]["x"]["mae"] == pytest.approx(2.5)
    assert report["all"]["baselines"]["x"]["rows"] == 400
    assert report["slices"]["above"]["rows"] == sum(50 + i % 7 > 53.5 for i in range(400))


def test_one_that_was_scaled_too_early_is_refused(tmp_path: Path) -> None:
    scrub = {"standardize": {"columns": ["x"]}, "derive": {"columns": {"z": "x * 2"}}}
    with pytest.raises(UserError, match=r"'x', which \[scrub.standardize\] has scaled: put"):
        Run(pipeline(tmp_path, scrub)).run(fresh=True)
