"""Numbers on a common scale, against scikit-learn, polars and River."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import RobustScaler

from engine.loading.collate import Collate
from engine.types import Batch, Features
from tests.size import examples

INF, NAN = math.inf, math.nan
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
RANK = 0.005
"""The stated error of a quantile, as a share of the numbers."""


# ------------------------------------------------------------------------------------------ robust


@pytest.mark.usefixtures("steady")
@settings(max_examples=examples(60), deadline=None)
@given(
    values=st.lists(
        st.integers(-1000, 1000).map(float) | st.sampled_from([NAN, INF, None]), min_size=1
    ),
    cut=st.integers(1, 20),
)
def test_robust_of_few_numbers_is_scikit_learns(
    run: Run, values: list[float | None], cut: int
) -> None:
    """Up to a hundred numbers each have a cell of the digest, but for its interpolation."""
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    parts = [frame.slice(at, cut) for at in range(0, len(values), cut)]
    probe = pl.DataFrame({"x": [0.0, 1.0]})
    at_0, at_1 = run("robust", {"columns": ["x"]}, *parts, probe)[-1].frame["x"]
    numbers = np.array([v for v in values if v is not None and math.isfinite(v)])
    if not len(numbers) or np.ptp(numbers) == 0:
        assert (at_0, at_1) == (0.0, 0.0)
        return
    scale = at_1 - at_0
    assert scale > 0
    median = -at_0 / scale
    low, high = neighbours(numbers, 0.5)
    assert low - 1e-6 <= median <= high + 1e-6


def neighbours(numbers: np.ndarray[Any, Any], q: float) -> tuple[float, float]:
    """The order statistics around rank q, one place further on each side."""
    ordered = np.sort(numbers)
    at = q * len(ordered)
    last = len(ordered) - 1
    return ordered[max(math.floor(at) - 1, 0)], ordered[min(math.ceil(at), last)]


def test_robust_is_scikit_learns_within_the_stated_error(run: Run) -> None:
    rng = np.random.default_rng(3)
    frame = pl.DataFrame(
        {
            "normal": rng.normal(1e6, 5, 40_000),
            "tail": rng.exponential(2, 40_000) ** 3,
            "spoilt": np.where(rng.random(40_000) < 0.2, 1e9, rng.normal(0, 1, 40_000)),
        }
    )
    scaler = RobustScaler().fit(frame.to_numpy())
    parts = [frame.slice(at, 1000) for at in range(0, 40_000, 1000)]
    probe = pl.DataFrame(
        np.stack((scaler.center_, scaler.center_ + scaler.scale_)), schema=frame.columns
    )
    done = run("robust", {"columns": ["*"]}, *parts, probe)[-1].frame.select(frame.columns)
    centre, one = done.to_numpy()
    for j, column in enumerate(frame.get_columns()):
        low, high = (column.quantile(0.5 + side * RANK) for side in (-1, 1))
        assert low is not None
        assert high is not None
        assert abs(centre[j]) <= (high - low) / scaler.scale_[j], column.name
        assert one[j] == pytest.approx(1, abs=0.02), column.name


@pytest.mark.usefixtures("steady")
def test_robust_where_most_values_are_the_same(run: Run) -> None:
    part = {"x": [5.0] * 9 + [99.0], "same": [2] * 10}
    done = run("robust", {"columns": ["x", "same"]}, part, {"x": [5.0, 7.0], "same": [2, 3]})
    assert done[1].frame["x"].to_list() == [0.0, 2.0]
    assert done[1].frame["same"].to_list() == [0.0, 0.0]


# ---------------------------------------------------------------------------------- the first rows


@pytest.mark.parametrize("cuts", [[], [1], [1, 2, 3], [100, 150], [200]])
def test_the_first_rows_are_scaled_by_the_rows_before_them(run: Run, cuts: list[int]) -> None:
    """A small file is scaled too, and however it is cut; the first rows do not explode. Sixteen
    rows count for themselves as well, up to the 128th blocks as long as what came before."""
    x = np.random.default_rng(0).normal(1_000, 5, 300)
    edges = zip([0, *cuts], [*cuts, len(x)], strict=True)
    done = run("standardize", {"columns": ["x"]}, *({"x": x[a:b]} for a, b in edges))
    made = np.concatenate([b.frame["x"].to_numpy() for b in done])
    learned = [
        i + 1 if i < 16 else max(b for b in (16, 32, 64, *cuts) if b <= i) for i in range(128)
    ]
    if max(cuts, default=0) <= 16 or cuts == [200]:
        expected = [(x[i] - x[:k].mean()) / (x[:k].std() or np.inf) for i, k in enumerate(learned)]
        np.testing.assert_allclose(made[:128], expected, atol=1e-9)
    assert abs(made).max() < 6
    assert made.std() == pytest.approx(1, abs=0.15)
    if cuts in ([], [1]):
        later = (x[128:] - x[:128].mean()) / x[:128].std()
        np.testing.assert_allclose(made[128:], later)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("standardize", {}),
        ("standardize", {"halflife": 40}),
        ("normalize", {}),
        ("robust", {}),
        ("power", {}),
        ("power", {"method": "log", "standardize": True}),
        ("standardize_by", {"by": ["key"]}),
    ],
)
def test_no_row_of_a_first_batch_is_changed_by_later_ones(
    run: Run, kind: str, options: dict[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    x = rng.exponential(10, 300)
    frame = pl.DataFrame({"x": x, "key": rng.integers(0, 3, 300)})
    other = frame.with_columns(x=pl.Series([*x[:70], *x[70:] * 1e6]))
    made, changed = (
        run(kind, {"columns": ["x"], **options}, f)[0].frame["x"] for f in (frame, other)
    )
    assert made.n_unique() > 250
    assert made[:70].equals(changed[:70])
    assert not made[70:].equals(changed[70:])
    assert run(kind, {"columns": ["x"], **options}, frame)[0].frame["x"].equals(made)


@pytest.mark.parametrize(("kind", "bound"), [("normalize", (0, 1)), ("robust", (-9, 9))])
def test_the_first_rows_lie_where_the_others_do(
    run: Run, kind: str, bound: tuple[float, float]
) -> None:
    x = np.random.default_rng(0).uniform(-5, 5, 128)
    made = run(kind, {"columns": ["x"]}, {"x": x})[0].frame["x"]
    assert made[:16].is_between(*bound).all()
    assert made.is_between(bound[0] - 0.1, bound[1] + 0.1).all()  # sixteen rows do not span all
    assert made[8:].std() > 0.2  # type: ignore[operator]


def test_the_first_rows_of_a_part_that_is_not_learned_teach_nothing(run: Run) -> None:
    part = {"x": [1.0, 100.0, 3.0, 5.0], "_part": ["train", "test", "train", "train"]}
    made = run("standardize", {"columns": ["x"]}, part)[0].frame["x"].to_list()
    assert made == pytest.approx([0, 0, 1, 2 / math.sqrt(8 / 3)])


def test_a_stage_that_may_learn_little_is_scaled_by_that(run: Run) -> None:
    options = {"columns": ["x"], "freeze_after": 2}
    made = run("standardize", options, {"x": [1.0, 3.0, 7.0]})[0].frame["x"].to_list()
    assert made == [0, 1, 5]


# ---------------------------------------------------------------------------------------- half-life


def test_standardize_with_a_halflife_follows_a_level_that_moves(run: Run) -> None:
    rng = np.random.default_rng(5)
    x = np.concatenate((rng.normal(0, 1, 20_000), rng.normal(50, 3, 6_000)))
    parts = [pl.DataFrame({"x": x[at : at + 500]}) for at in range(0, len(x), 500)]
    last = run("standardize", {"columns": ["x"], "halflife": 300}, *parts)[-1].frame["x"].to_numpy()
    assert abs(last.mean()) < 0.3
    assert last.std() == pytest.approx(1, abs=0.15)
    (*_, plain) = run("standardize", {"columns": ["x"]}, *parts)
    assert plain.frame["x"].to_numpy().mean() > 1  # which without it would stand far off


@settings(max_examples=examples(40), deadline=None)
@given(
    values=st.lists(st.integers(-1000, 1000).map(float) | st.just(NAN), min_size=2, max_size=60),
    cut=st.integers(1, 30),
)
def test_a_halflife_of_batches_is_that_of_the_whole(
    run: Run, values: list[float], cut: int
) -> None:
    options = {"columns": ["x"], "halflife": 7.0}
    frame = pl.DataFrame({"x": values}, schema={"x": pl.Float64})
    parts = [frame.slice(at, cut) for at in range(0, len(values), cut)]
    probe = pl.DataFrame({"x": [0.0, 1.0, -3.0]})
    by_parts = run("standardize", options, *parts, probe)[-1].frame["x"].to_list()
    whole = run("standardize", options, frame, probe)[-1].frame["x"].to_list()
    assert by_parts == pytest.approx(whole, rel=1e-6, abs=1e-6)


# ------------------------------------------------------------------------------------- the infinite


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("kind", ["standardize", "normalize", "robust", "standardize_by"])
@settings(max_examples=examples(25), deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 5.0, NAN, INF, -INF, None]), min_size=1),
    cut=st.integers(1, 20),
)
def test_what_is_infinite_stays_so_from_the_first_row_on(
    run: Run, kind: str, values: list[float | None], cut: int
) -> None:
    """So that a row is rejected for what it holds."""
    frame = pl.DataFrame({"x": values, "k": "a"}, schema={"x": pl.Float64, "k": pl.String})
    parts = [frame.slice(at, cut) for at in range(0, len(values), cut)]
    by = {"by": ["k"]} if kind == "standardize_by" else {}
    done = pl.concat([b.frame for b in run(kind, {"columns": ["x"], **by}, *parts)])["x"].to_list()
    for value, got in zip(values, done, strict=True):
        if value is None:
            assert got is None
        elif math.isinf(value):
            assert got == value
        else:
            assert math.isnan(value) == math.isnan(got)
            assert not math.isinf(got)


# ----------------------------------------------------------------------------------- the too large

LARGE = [1e200, None, 2e200, -1e308]


@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("kind", ["standardize", "robust", "standardize_by", "power"])
def test_what_is_too_large_to_learn_from_stays_so_and_is_told(
    request: pytest.FixtureRequest, stage: Make, batch: Make, kind: str, cold: bool
) -> None:
    if not cold:
        request.getfixturevalue("steady")
    by = {"by": ["k"]} if kind == "standardize_by" else {}
    made, rows = stage(kind, columns=["x"], **by), batch(x=LARGE, k=["a"] * 4)
    made.bind({"x": pl.Float64(), "k": pl.String()})
    first, second = made.apply(rows), made.apply(rows)
    assert first.frame["x"].to_list() == second.frame["x"].to_list() == LARGE
    assert first.counts["s", "too_large"] == second.counts["s", "too_large"] == 3
    (remark,) = made.remarks()
    assert "learned nothing from 6 numbers of column 'x' of size 1e+140 or more" in remark
    assert "(the first: 1e+200)" in remark


@pytest.mark.parametrize("kind", ["standardize", "normalize", "robust", "power"])
def test_beside_a_constant_a_number_that_is_too_large_is_none_like_it(run: Run, kind: str) -> None:
    part = {"x": [5.0] * 200}
    done = run(kind, {"columns": ["x"]}, part, {"x": [5.0, 7.0, 1e200]})[-1].frame["x"].to_list()
    assert done[0] == 0
    assert abs(done[2]) >= 1e200


def test_numbers_below_the_limit_are_counted_nowhere(run: Run) -> None:
    (done,) = run("standardize", {"columns": ["x"]}, {"x": [1.0, None, NAN, INF, 9e139]})
    assert not done.counts


@pytest.mark.usefixtures("steady")
def test_normalize_holds_the_whole_range(run: Run) -> None:
    part = {"x": [1e200, 2e200, 3e200, -1e200]}
    (_, done) = run("normalize", {"columns": ["x"]}, part, part)
    assert done.frame["x"].to_list() == pytest.approx([0.5, 0.75, 1.0, 0.0])
    assert not done.counts
    (_, done) = run("normalize", {"columns": ["x"]}, {"x": [1e300, 1e300]}, {"x": [1e300]})
    assert done.frame["x"].to_list() == [1e300]
    assert done.counts == {("s", "too_large"): 1}


@pytest.mark.parametrize(("strategy", "filled"), [("mean", 0.0), ("median", 0.0)])
def test_a_gap_among_numbers_that_are_too_large_says_so(
    stage: Make, batch: Make, strategy: str, filled: float
) -> None:
    made = stage("missing", columns=["x"], strategy=strategy)
    made.bind({"x": pl.Float64()})
    done = made.apply(batch(x=LARGE))
    assert done.frame["x"].to_list() == [1e200, filled, 2e200, -1e308]
    assert done.counts["s", "too_large"] == 3
    empty, large = made.remarks()
    assert "filled what is missing in it with 0.0" in empty
    assert "learned nothing from 3 numbers of column 'x'" in large


def test_outliers_are_bounded_however_large(run: Run) -> None:
    part = {"x": [float(i % 10) for i in range(200)]}
    done = run("outliers", {"columns": ["x"], "method": "iqr"}, part, {"x": [1e200, 3.0]})[-1]
    assert done.frame["x"].to_list() == pytest.approx([22.0, 3.0], abs=1.0)
    assert done.counts == {("s", "clipped"): 1, ("s", "too_large"): 1}


def test_a_learner_never_sees_what_no_stage_could_scale(run: Run) -> None:
    (done,) = run("standardize", {"columns": ["x"]}, {"x": [1e308, -1e308, 1e308]})
    batch = Collate(Features(numeric=("x",))).apply(done)
    assert batch.tensors is not None
    assert len(batch.tensors.numeric) == 0
    assert [rejects.reason for rejects in batch.rejects] == ["non_finite"]
    assert sum(len(rejects) for rejects in batch.rejects) == 3
