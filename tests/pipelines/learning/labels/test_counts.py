"""Counts: predictions are rates, judged by their deviance, and what is no count is rejected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import mean_poisson_deviance

from engine.run import Run
from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "visits"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/rows.csv"
[model]
target = "visits"
numeric = ["heat"]
layers = [8]
{model}
[train]
loss = "poisson"
lr = 0.01
[loader]
batch_rows = 100
[sink]
kind = "files"
path = "{folder}/out"
[export]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Counts beside what drives them; every hundredth is below 0."""
    rng = np.random.default_rng(0)
    heat = rng.normal(size=2_000)
    visits = rng.poisson(np.exp(0.5 * heat + 3))
    visits[::100] = -1
    pl.DataFrame({"heat": heat, "visits": visits}).write_csv(tmp_path / "rows.csv")
    path = tmp_path / "visits.toml"
    path.write_text(PIPELINE.format(folder=tmp_path, model=""))
    return path


def test_counts_are_learned_judged_and_served(
    file: Path, headrace: Headrace, tmp_path: Path
) -> None:
    summary = Run(file).run()
    assert summary.totals.balanced
    assert summary.totals.rejected == 20
    rejects = pl.read_ndjson(sorted((tmp_path / "run" / "dead_letters").glob("part-*")))
    assert set(rejects["reason"]) == {"low_label"}
    rows = pl.read_parquet(tmp_path / "out" / "*.parquet")
    expected = mean_poisson_deviance(rows["visits"].to_numpy(), rows["prediction"].to_numpy())
    assert summary.report["all"]["deviance"] == pytest.approx(expected)
    assert summary.report["window"]["deviance"] == pytest.approx(expected)
    served = tmp_path / "served"
    model = tmp_path / "run" / "model.onnx"
    code, _, err = headrace("predict", model, "--input", tmp_path / "rows.csv", "--output", served)
    assert code == 0, err
    rates = pl.read_parquet(served / "*.parquet")
    assert (rates["prediction"] > 0).all()
    wrong = (rates["prediction"].log() - 0.5 * rates["heat"] - 3).abs()
    assert np.median(wrong.to_numpy()) < 0.2


def test_a_transform_beside_it_is_one_sentence(
    file: Path, headrace: Headrace, tmp_path: Path
) -> None:
    file.write_text(PIPELINE.format(folder=tmp_path, model='target_transform = "log1p"'))
    code, _, err = headrace("check", file)
    assert code == 2
    assert "target_transform does not go with [train] loss = 'poisson'" in err
