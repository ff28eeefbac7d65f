"""A new model is kept back only if it is surely worse than the one that serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.compress.successor import surely_worse
from models.serving.predictor import OnnxPredictor
from tests.models.serving.published import network

ALLOWED = 5.0


def rows_for(path: Path, n: int, noise: float = 0.1) -> pl.DataFrame:
    """Rows whose label is what this model says, and some noise."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({name: rng.normal(size=n) for name in ("a", "b", "c")})
    model = OnnxPredictor(OnnxPredictor.Settings(model=str(path), threads=1))
    scores = model.scores(frame).astype(np.float64)
    scores += noise * scores.std() * rng.normal(size=scores.shape)
    if model.features.targets:
        gaps = pl.Series(rng.random(n) < 0.3)
        frame = frame.with_columns(y=pl.Series(scores[:, 0]), z=pl.Series(scores[:, 1]))
        return frame.with_columns(z=pl.when(~gaps).then(pl.col("z")))
    if model.features.task == "regression":
        scores = model.features.points(scores)
        return frame.with_columns(y=pl.Series(scores))
    labels = np.where(scores > 0.5, "yes", "no")
    return frame.with_columns(y=pl.Series(labels))


@pytest.mark.parametrize("task", ["regression", "binary", "quantiles"])
def test_a_worse_one_is_told_and_others_are_not(tmp_path: Path, task: str) -> None:
    good, bad = (network(tmp_path / f"{seed}.onnx", seed, task=task) for seed in (0, 1))
    rows = rows_for(good, 400)
    said = surely_worse(bad, good, rows, allowed=ALLOWED)
    measure = {"regression": "MAE", "binary": "error", "quantiles": "pinball loss"}[task]
    assert said.startswith(f"its {measure} on 400 held-out rows is worse by ")
    assert said.endswith(", and 5 are allowed")
    assert surely_worse(good, bad, rows, allowed=ALLOWED) == ""
    assert surely_worse(good, good, rows, allowed=0) == ""


def test_each_of_several_targets_counts(tmp_path: Path) -> None:
    good, bad = (network(tmp_path / f"{seed}.onnx", seed, task="several") for seed in (0, 1))
    rows = rows_for(good, 400)
    assert surely_worse(good, good, rows, allowed=0) == ""
    spoilt = rows.with_columns(y=rows_for(bad, 400)["y"])  # of which the other knows more
    for held, name in ((rows, "y"), (spoilt, "z")):
        said = surely_worse(bad, good, held, allowed=ALLOWED)
        assert said.startswith(f"its MAE of {name} on 400 held-out rows is worse by ")


def test_an_error_beside_none_is_worse(tmp_path: Path) -> None:
    good, bad = (network(tmp_path / f"{seed}.onnx", seed) for seed in (0, 1))
    said = surely_worse(bad, good, rows_for(good, 200, noise=0), allowed=ALLOWED)
    assert said.endswith(", where the other has none")


def test_where_it_cannot_be_told_nothing_is_kept_back(tmp_path: Path) -> None:
    good, bad = (network(tmp_path / f"{seed}.onnx", seed) for seed in (0, 1))
    rows = rows_for(good, 400)
    assert surely_worse(bad, good, rows.head(99), allowed=ALLOWED) == ""  # too few
    nobody = rows.with_columns(y=pl.lit(None, pl.Float64))
    assert surely_worse(bad, good, nobody, allowed=ALLOWED) == ""
    other = network(tmp_path / "other.onnx", 2, columns=("a", "z"))
    assert surely_worse(bad, other, rows, allowed=ALLOWED) == ""  # it reads another column
    for task in ("binary", "quantiles"):  # which answer otherwise
        other = network(tmp_path / "other.onnx", 2, task=task)
        assert surely_worse(bad, other, rows, allowed=ALLOWED) == ""
