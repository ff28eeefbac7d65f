"""Logarithms and powers, against numpy, scipy and scikit-learn's PowerTransformer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import PowerTransformer

from engine.columnar.kernels import inverse_power_transform, power_transform
from engine.scrub.values.power import HIGH, LOW, yeo_johnson
from engine.types import Batch
from tests.scrub.conftest import batch_of
from tests.size import examples

INF, NAN = math.inf, math.nan
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
Column = np.ndarray[Any, np.dtype[np.float64]]


def samples(rows: int) -> dict[str, Column]:
    rng = np.random.default_rng(8)
    return {
        "exponential": rng.exponential(3, rows),
        "lognormal": rng.lognormal(0, 1, rows),
        "below zero": -rng.lognormal(0, 1, rows),
        "normal": rng.normal(0, 1, rows),
        "both sides": rng.normal(2, 3, rows) ** 3,
        "counts": rng.poisson(3, rows).astype(float),
        "heavy": rng.standard_t(3, rows),
        "large": rng.chisquare(1, rows) * 1e5,
    }


def test_log_keeps_the_sign(run: Run) -> None:
    x = [0.0, 1.0, -1.0, 1e-12, INF, None, NAN]
    (done,) = run("power", {"columns": ["x", "n"], "method": "log"}, {"x": x, "n": [3] * 7})
    got = done.frame["x"]
    assert got.to_list()[:6] == [0.0, math.log(2), -math.log(2), math.log1p(1e-12), INF, None]
    assert math.isnan(got[6])
    assert done.frame["n"].to_list() == [math.log(4)] * 7


@pytest.mark.parametrize("exponent", [-4.0, -0.5, 0.0, 0.3, 1.0, 2.0, 2.7, 6.0])
def test_a_given_exponent_is_scikit_learns(run: Run, exponent: float) -> None:
    x = np.linspace(-40, 40, 401)
    transformer = PowerTransformer(standardize=False)
    transformer.fit(x[:, None])
    transformer.lambdas_ = np.array([exponent])
    (done,) = run("power", {"columns": ["x"], "exponent": exponent}, pl.DataFrame({"x": x}))
    wanted = transformer.transform(x[:, None])[:, 0]
    np.testing.assert_allclose(done.frame["x"].to_numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1_000, 20_000])
def test_streamed_exponents_are_scikit_learns(make: Any, rows: int) -> None:
    columns = samples(rows)
    transformer = PowerTransformer().fit(np.stack(list(columns.values()), axis=1))
    stage, frame = make(columns)
    wanted = dict(zip(columns, transformer.lambdas_, strict=True))
    found = {t.column: t.above for t in stage.transforms()[: len(columns)]}
    assert found == pytest.approx(wanted, abs=0.005)
    ours = stage.apply(frame).frame.select(list(columns)).to_numpy()
    assert np.abs(ours.mean(axis=0)).max() < 0.01
    assert ours.std(axis=0) == pytest.approx(1, abs=0.01)


@pytest.fixture
def make(stage: Make, batch: Callable[..., Batch]) -> Callable[[dict[str, Column]], Any]:
    """The stage after it has learned the columns in batches, and the columns as one batch."""

    def built(columns: dict[str, Column], **options: Any) -> Any:
        frame = pl.DataFrame(columns)
        made = stage("power", columns=["*"], **options)
        made.bind(dict(frame.schema))
        size = max(frame.height // 10, 1)
        for at in range(0, frame.height, size):
            made.apply(batch(frame.slice(at, size)))
        return made, batch(frame)

    return built


def test_the_inverse_gives_the_raw_numbers(make: Any) -> None:
    columns = samples(2_000)
    stage, frame = make(columns)
    known = stage.snapshot()
    done = stage.apply(frame).frame
    stage.restore(known)
    again = stage.inverse(done)
    for name, column in columns.items():
        scale = np.abs(column).max()
        np.testing.assert_allclose(again[name].to_numpy(), column, rtol=1e-7, atol=1e-9 * scale)


@settings(max_examples=examples(200), deadline=None)
@given(
    x=st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1e-300, -1e-9]),
    above=st.integers(-50, 300).map(lambda n: n / 100),
    below=st.integers(-50, 300).map(lambda n: n / 100),
)
def test_there_and_back(x: float, above: float, below: float) -> None:
    y = power_transform(pl.Series([x]), above, below)
    assert inverse_power_transform(y, above, below)[0] == pytest.approx(x, rel=1e-6, abs=1e-300)
    assert math.copysign(1, y[0]) == math.copysign(1, x) or y[0] == 0


def test_beyond_what_a_power_can_give_is_infinite() -> None:
    assert inverse_power_transform(pl.Series([2.0, 3.0, None]), -0.5, 1.0).to_list() == [
        INF,
        INF,
        None,
    ]


@pytest.mark.parametrize("standardize", [False, True])
def test_numbers_whose_power_is_infinite_are_told(stage: Make, standardize: bool) -> None:
    """Also beside null and what was infinite before; the others are changed as they were."""
    made = stage("power", columns=["x", "y"], exponent=6.0, standardize=standardize, min_rows=2)
    made.bind({"x": pl.Float64(), "y": pl.Float64()})
    x = [1.0, 2.0, 3.0, 1e60, None, INF, 2e55]
    frame = pl.DataFrame({"x": x, "y": [float(i) for i in range(7)]})
    places = pl.DataFrame({"_partition": ["p"] * 7, "_position": range(7)})
    for n in (1, 2):
        done = made.apply(batch_of(places.hstack(frame)))
        assert done.counts["s", "overflowed"] == 2
        infinite = [None if each is None else each > 3 for each in x]
        assert done.frame["x"].is_infinite().to_list() == infinite
        assert done.frame["x"].head(3).n_unique() == 3  # they are scaled by what they are
        (told,) = [each for each in made.remarks() if "infinite" in each]
        assert f"[scrub.s] made {2 * n} numbers of column 'x' infinite (the first: 1e+60)" in told


def test_far_from_zero_digits_are_left(make: Any) -> None:
    """A large negative exponent would make one number of all of them."""
    rng = np.random.default_rng(9)
    x = 1e6 - rng.exponential(1, 5_000)
    stage, frame = make({"x": 2e6 - x, "y": -x})
    done = stage.apply(frame).frame
    for column in "xy":
        assert done[column].n_unique() > 4_990
        assert done[column].std() == pytest.approx(1, abs=0.02)


def test_what_does_not_vary_is_left_alone(run: Run) -> None:
    part = {"x": [7.0] * 200, "gone": pl.Series([None] * 200, dtype=pl.Float64).to_list()}
    frame = pl.DataFrame(part, schema={"x": pl.Float64, "gone": pl.Float64})
    options = {"columns": ["*"], "standardize": False}
    assert run("power", options, frame, frame)[1].frame["x"].to_list() == [7.0] * 200
    options = {"columns": ["*"]}
    assert run("power", options, frame, frame)[1].frame["x"].to_list() == [0.0] * 200


def test_nothing_is_fitted_before_min_rows_and_then_ever_more_rarely(
    stage: Make, batch: Callable[..., Batch]
) -> None:
    rng = np.random.default_rng(1)
    made = stage("power", columns=["x"], min_rows=30, standardize=False)
    made.bind({"x": pl.Float64()})
    exponents = []
    for _ in range(60):
        exponents.append(made.transforms()[0].above)
        made.apply(batch(pl.DataFrame({"x": rng.exponential(1, 10)})))
    assert exponents[:3] == [1.0, 1.0, 1.0]
    assert exponents[3] != 1.0
    assert 10 < len(set(exponents)) < 30


@settings(max_examples=examples(60), deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**40), 2.0**40, width=32), min_size=1, max_size=40),
    weights=st.lists(st.integers(0, 5), min_size=40, max_size=40),
)
def test_an_exponent_always_lies_within_its_bounds(values: list[float], weights: list[int]) -> None:
    x = np.array(values)[:, None]
    weight = np.array(weights[: len(values)], np.float64)[:, None]
    (exponent,) = yeo_johnson(x, weight)
    assert LOW <= exponent <= HIGH
    (doubled,) = yeo_johnson(x, 2 * weight)
    assert exponent == doubled
