"""Missing numbers from the other columns, against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.experimental import enable_iterative_imputer
from sklearn.impute import IterativeImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engine.types import Batch

assert enable_iterative_imputer is not None
NAN = math.nan
Run = Callable[..., list[Batch]]
Matrix = np.ndarray[Any, np.dtype[np.float64]]
NAMES = [f"c{j}" for j in range(6)]


def together(rows: int, seed: int) -> Matrix:
    """Columns of different units that two hidden ones and some noise make."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, 1, (rows, 2))
    mixed = hidden @ np.random.default_rng(0).normal(0, 1, (2, 6)) + rng.normal(0, 0.3, (rows, 6))
    return np.asarray(mixed * 10.0 ** np.arange(-2, 4) + np.arange(6) * 100)


def holes(matrix: Matrix, share: float, seed: int) -> Matrix:
    return np.where(np.random.default_rng(seed).random(matrix.shape) < share, NAN, matrix)


def frame_of(matrix: Matrix) -> pl.DataFrame:
    return pl.DataFrame(matrix, schema=NAMES)


@pytest.mark.parametrize("alpha", [1e-6, 1.0, 300.0])
def test_one_missing_column_is_scikit_learns_ridge(run: Run, alpha: float) -> None:
    known, asked = holes(together(2_000, 1), 0.05, 1), together(60, 2)
    gone = np.arange(60) % 6
    spoilt = asked.copy()
    spoilt[np.arange(60), gone] = NAN
    parts = [frame_of(known[at : at + 150]) for at in range(0, 2_000, 150)]
    options = {"columns": NAMES, "alpha": alpha}
    *_, last = run("impute", options, *parts, frame_of(spoilt))
    ours = last.frame.select(NAMES).to_numpy()
    complete = known[~np.isnan(known).any(axis=1)]
    for j in range(6):
        others = [i for i in range(6) if i != j]
        model = make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="cholesky"))
        level, unit = complete[:, j].mean(), complete[:, j].std()
        model.fit(complete[:, others], (complete[:, j] - level) / unit)
        rows = gone == j
        wanted = model.predict(asked[rows][:, others]) * unit + level
        np.testing.assert_allclose(ours[rows, j], wanted, rtol=1e-9)
        assert np.array_equal(ours[rows][:, others], asked[rows][:, others])
    assert last.counts["s", "filled"] == 60


def test_as_good_as_scikit_learns_iterative_imputer(run: Run) -> None:
    """Root mean squared error in deviations, two of six columns missing in a row on average."""
    known, asked = holes(together(4_000, 3), 0.1, 3), together(3_000, 4)
    spoilt = holes(asked, 0.3, 5)
    imputer = IterativeImputer(max_iter=20, random_state=0).fit(known)
    *_, last = run("impute", {"columns": NAMES}, frame_of(known), frame_of(spoilt))
    gone = np.isnan(spoilt)

    def error(filled: Matrix) -> float:
        off = (filled - asked) / asked.std(axis=0)
        return float(np.sqrt((off[gone] ** 2).mean()))

    ours = error(last.frame.select(NAMES).to_numpy())
    assert ours <= 1.02 * error(imputer.transform(spoilt))
    assert ours < 0.6 * error(np.where(gone, np.nanmean(known, axis=0), spoilt))


def test_rows_with_nothing_get_the_mean(run: Run) -> None:
    x = np.arange(200.0)
    first = {"x": x.tolist(), "y": (2 * x).tolist()}
    done = run("impute", {"columns": ["x", "y"]}, first, {"x": [None, 3.0], "y": [NAN, None]})
    assert done[1].frame["x"].to_list() == pytest.approx([99.5, 3.0])
    # Of 200 rows, a penalty of 1 takes a 201st part.
    assert done[1].frame["y"].to_list() == pytest.approx([199.0, 199 - 193 * 200 / 201])


def test_before_min_rows_the_mean_stands_in(run: Run) -> None:
    first = {"n": [1, 2, None, 6], "x": [1.0, 2.0, 7.0, None], "given": [1, 2, 3, 4]}
    options = {"columns": ["n", "x"], "predictors": ["given"], "min_rows": 3, "indicator": True}
    done = run("impute", options, first, {"n": [None], "x": [None], "given": [None]})
    assert done[0].frame["n"].to_list() == [1.0, 2.0, 0.0, 6.0]
    assert done[0].frame["n_missing"].to_list() == [0.0, 0.0, 1.0, 0.0]
    assert done[1].frame["n"].to_list() == [3.0]
    assert done[1].frame["x"].to_list() == pytest.approx([10 / 3])
    assert done[1].frame["given"].to_list() == [None]
    assert "given_missing" not in done[1].frame.columns


def test_infinity_and_a_column_that_does_not_vary(run: Run) -> None:
    x = [float(i) for i in range(200)]
    first = {"x": x, "same": [7.0] * 200, "y": x}
    asked = {"x": [None, None, math.inf], "same": [7.0, None, 7.0], "y": [10.0, math.inf, None]}
    _, done = run("impute", {"columns": ["x", "same", "y"]}, first, asked)
    assert done.frame["x"].to_list() == [pytest.approx(10, rel=0.05), 99.5, math.inf]
    assert done.frame["same"].to_list() == [7.0, 7.0, 7.0]
    assert done.frame["y"].to_list() == [10.0, math.inf, 99.5]


def test_what_follows_one_from_another_can_be_solved(run: Run) -> None:
    """Equal columns make a system without the penalty singular."""
    x = np.random.default_rng(6).normal(0, 1, 500)
    first = {"x": x.tolist(), "twin": x.tolist(), "double": (2 * x).tolist()}
    asked = {"x": [0.5, None], "twin": [None, None], "double": [None, 1.0]}
    *_, done = run("impute", {"columns": ["x", "twin", "double"]}, first, asked)
    assert done.frame["twin"].to_list() == pytest.approx([0.5, 0.5], abs=0.01)
    assert done.frame["double"].to_list() == pytest.approx([1.0, 1.0], abs=0.01)
