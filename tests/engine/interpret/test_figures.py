"""Figures of labels beside scores: calibration, slices, losses, the page."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from engine.columnar.row_expressions import Condition
from engine.interpret import Interpretation, page
from engine.interpret.calibration import calibrations, quantile_calibrations
from engine.interpret.figures import (
    Calibration,
    Coverage,
    Importance,
    QuantileCalibration,
    Slice,
    WorstRow,
)
from engine.interpret.judging import Judge, Judged, are_probabilities, student
from engine.interpret.sentences import of_quantiles
from engine.interpret.slices import cells, named_slices, worst_slices
from engine.interpret.worst import worst_rows
from engine.types import Features
from engine.types.arrays import Floats
from tests.chromium import HOSTILE, require_inert

TWO = Features(numeric=(), task="binary", classes=("no", "yes"))
NUMBERS = Features(numeric=())


def judged(target: NDArray[Any], scores: Floats) -> Judged:
    return Judged(rows=np.arange(len(target)), target=target, scores=scores)


# ------------------------------------------------------------------------------------- reliability


def test_a_calibrated_models_groups_fit_and_an_overconfident_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random(6_000)
    labels = (rng.random(6_000) < chance).astype(np.int64)
    judge = Judge(features=TWO, probabilistic=True)
    good = calibrations(judge, judged(labels, chance))
    assert len(good) == 15
    assert sum(group.rows for group in good) == 6_000
    assert sum(not group.fits for group in good) <= 2
    for group in good:
        assert group.predicted == pytest.approx(group.observed, abs=0.06)
    odds = chance**3 / (chance**3 + (1 - chance) ** 3)
    bad = calibrations(judge, judged(labels, odds))
    assert sum(not group.fits for group in bad) > 10


def test_a_regression_is_calibrated_where_its_values_are_means() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=3_000)
    judge = Judge(features=NUMBERS, probabilistic=False)
    good = calibrations(judge, judged(scores + rng.normal(size=3_000), scores))
    assert sum(not group.fits for group in good) <= 2
    bad = calibrations(judge, judged(scores / 2 + rng.normal(size=3_000), scores))
    assert sum(not group.fits for group in bad) > 10
    assert [group.predicted for group in bad] == sorted(group.predicted for group in bad)


def waits(n: int) -> tuple[Floats, Floats]:
    """Return exponential targets, skewed as waiting times are, and the mean of each."""
    rng = np.random.default_rng(0)
    mean = 1 + 9 * rng.random(n)
    return mean * rng.exponential(size=n), mean


def bands(target: Floats, scores: Floats, levels: tuple[float, ...]) -> Judged:
    return Judged(
        rows=np.arange(len(target)),
        target=target,
        scores=scores[:, levels.index(0.5)],
        quantiles=scores,
    )


def test_quantiles_of_a_skewed_target_are_judged_by_the_targets_below_them() -> None:
    levels = (0.1, 0.5, 0.9)
    target, mean = waits(6_000)
    judge = Judge(features=Features(numeric=(), quantiles=levels), probabilistic=False)
    right = np.stack([-np.log(1 - level) * mean for level in levels], axis=1)
    assert calibrations(judge, bands(target, right, levels)) == ()
    found = quantile_calibrations(judge, bands(target, right, levels))
    assert list(of_quantiles(found)) == []
    assert [each.name for each in found] == ["q10", "q50", "q90", "q10 to q90"]
    assert [each.asked for each in found] == [*levels, 0.8]
    for each, shown in zip(found, (*right.T, right[:, 2] - right[:, 0]), strict=True):
        assert each.whole.fits
        assert each.whole.observed == pytest.approx(each.asked, abs=0.02)
        assert each.whole.prediction == pytest.approx(shown.mean())
        assert (len(each.groups), sum(group.rows for group in each.groups)) == (15, 6_000)
        assert each.off <= 2
    wide = right * [0.5, 1, 2]
    off = quantile_calibrations(judge, bands(target, wide, levels))
    assert [each.whole.fits for each in off] == [False, True, False, False]
    low, high, both = of_quantiles(off)
    assert low.startswith("q10 is not calibrated: 4.9%")
    assert low.endswith("of the targets lie below it, and 10% were asked for.")
    assert high.startswith("q90 is not calibrated: 9")
    assert both.startswith("q10 to q90 is not calibrated: 9")
    assert "lie inside it, and 80% were" in both
    inside = ((wide[:, 0] <= target) & (target <= wide[:, 2])).mean()
    assert off[-1].whole.observed == pytest.approx(inside)
    constant = np.broadcast_to(np.quantile(target, levels), right.shape)
    ordered = np.argsort(mean)  # groups of equal predictions hold their rows in order
    flat = bands(target[ordered], constant[ordered], levels)
    everywhere = quantile_calibrations(judge, flat)[1]
    assert everywhere.whole.fits
    assert everywhere.off > 10
    (sentence,) = of_quantiles((everywhere,))
    assert sentence == (
        "q50 is not calibrated everywhere: the share of targets below it is off in "
        f"{everywhere.off} of 15 groups of rows by prediction."
    )


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_one_value_may_be_a_quantile(level: float) -> None:
    target, mean = waits(3_000)
    judge = Judge(features=Features(numeric=(), quantile=level), probabilistic=False)
    right = judged(target, -np.log(1 - level) * mean)
    (only,) = quantile_calibrations(judge, right)
    assert (only.asked, only.whole.fits, calibrations(judge, right)) == (level, True, ())
    (low,) = quantile_calibrations(judge, judged(target, right.scores / 2))
    assert not low.whole.fits


def test_targets_that_equal_a_quantile_count_for_either_side() -> None:
    """Of sales that are mostly 0, the median is 0, and most are not above it."""
    target = np.where(np.arange(1_000) % 10 < 7, 0.0, 5.0)
    judge = Judge(features=Features(numeric=(), quantile=0.5), probabilistic=False)
    (only,) = quantile_calibrations(judge, judged(target, np.zeros(1_000)))
    assert (only.whole.observed, only.whole.least, only.whole.fits) == (0.7, 0.0, True)
    (below,) = quantile_calibrations(judge, judged(target, np.full(1_000, -1.0)))
    assert not below.whole.fits


@pytest.mark.parametrize("rows", [1, 2, 39])
def test_few_rows_are_one_group(rows: int) -> None:
    (group,) = calibrations(
        Judge(features=TWO, probabilistic=True),
        judged(np.arange(rows) % 2, np.full(rows, 0.5)),
    )
    assert group.rows == rows
    assert group.fits


# ------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize(
    ("features", "quantiles", "losses", "worst"),
    [
        (Features(numeric=(), quantile=0.9), None, [9.0, 1.5, 0.9], (0, "0")),
        (Features(numeric=(), quantile=0.5), None, [10.0, 15.0, 1.0], (1, "0")),
        (NUMBERS, None, [10.0, 15.0, 1.0], (1, "0")),
        (
            Features(numeric=(), quantiles=(0.1, 0.5, 0.9)),
            [[-1.0, 0.0, 2.0], [-16.0, 0.0, 1.0], [-1.0, 0.0, 1.0]],
            [(1.1 + 5.0 + 7.2) / 3, (0.1 + 7.5 + 1.6) / 3, (0.2 + 0.5 + 0.0) / 3],
            (0, "0 (-1 to 2)"),
        ),
    ],
)
def test_rows_of_quantiles_are_judged_by_pinball_loss(
    features: Features, quantiles: Any, losses: list[float], worst: tuple[int, str]
) -> None:
    """A target far below the 0.9 quantile is no mistake of it; one far above is."""
    judge = Judge(features=features, probabilistic=False)
    target, scores = np.array([10.0, -15.0, 1.0]), np.zeros(3)
    several = None if quantiles is None else np.array(quantiles)
    rows = Judged(rows=np.arange(3), target=target, scores=scores, quantiles=several)
    assert judge.losses(rows) == pytest.approx(losses)
    assert judge.figures(rows)[judge.metrics[0]] == pytest.approx(np.mean(losses))
    assert judge.loss == ("absolute error" if judge.metrics[0] == "mae" else "pinball loss")
    frame = pl.DataFrame({"_partition": ["p"] * 3, "_position": range(3)})
    first = worst_rows(judge, frame, rows, judge.losses(rows), ())[0]
    assert (first.position, first.prediction) == worst


def test_scores_that_only_name_classes_are_no_probabilities() -> None:
    assert are_probabilities(np.array([0.0, 0.3, 1.0]))
    assert not are_probabilities(np.array([0.0, 1.0]))
    assert not are_probabilities(np.array([[2.0, -1.0], [0.5, 0.5]]))
    assert are_probabilities(np.array([[0.2, 0.8, 0.0], [1.0, 0.0, 0.0]]))


def test_metrics_fit_the_task() -> None:
    surely = Judge(features=TWO, probabilistic=False)
    assert surely.metric(None) == "accuracy"
    right = judged(np.array([0, 1, 1, 1]), np.array([0.0, 1.0, 1.0, 0.0]))
    assert surely.figures(right)["accuracy"] == 0.75
    assert surely.losses(right).tolist() == [0, 0, 0, 1]
    many = Features(numeric=(), task="multiclass", classes=("a", "b", "c"))
    assert "auc" not in Judge(features=many, probabilistic=True).metrics


@pytest.mark.parametrize(
    ("freedom", "expected", "within"),
    [(2, 4.302653, 0.04), (4, 2.776445, 0.005), (9, 2.262157, 0.0005)],
)
def test_the_expansion_of_students_distribution(
    freedom: int, expected: float, within: float
) -> None:
    """Beside the quantiles in any table of it."""
    assert student(0.95, freedom) == pytest.approx(expected, rel=within)


# ------------------------------------------------------------------------------------------ slices


def test_the_worst_slice_of_each_column_comes_first() -> None:
    rng = np.random.default_rng(0)
    n = 2_000
    frame = pl.DataFrame(
        {
            "x": rng.normal(size=n),
            "key": rng.choice(["a", "b", "c"], n),
            "noise": rng.normal(size=n),
            "list": pl.Series([[1] * k for k in rng.integers(0, 30, n)]),
            "day": [date(2020, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, 99, n)],
            "blob": pl.Series([b"x"] * n),
        }
    ).with_columns(x=pl.when(pl.col("key") == "b").then(None).otherwise(pl.col("x")))
    bad, long = frame["key"] == "b", frame["list"].list.len() > 25
    losses = rng.random(n) + 2 * bad.to_numpy() + long.to_numpy()
    found, uncut = worst_slices(frame, losses, tuple(frame.columns))
    names = [each.name for each in found]
    assert names[:2] in (["x is missing", "key = b"], ["key = b", "x is missing"])
    assert names[2].startswith("length of list from 2")
    assert [each.worse for each in found[:3]] == [True] * 3
    assert not any(each.worse for each in found if each.column in ("noise", "day"))
    assert uncut == ["blob"]
    assert [each.column for each in found if each.name.startswith("day from 2020-")]


def test_a_slice_better_than_all_rows_is_not_the_worst_of_its_column() -> None:
    """Its narrow interval may lie above that of a worse one; or the worse has too few rows."""
    rng = np.random.default_rng(0)
    losses = np.r_[rng.normal(1.0, 0.01, 400), rng.exponential(1.5, 40)]
    frame = pl.DataFrame(
        {"c": ["even"] * 400 + ["wild"] * 40, "few": ["even"] * 430 + ["rare"] * 10}
    )
    assert losses[:400].mean() < losses[:430].mean() < losses.mean()
    (worst,), uncut = worst_slices(frame, losses, ("c", "few"))
    assert (worst.name, uncut) == ("c = wild", [])


def test_no_interval_of_a_loss_reaches_below_0() -> None:
    frame = pl.DataFrame({"c": ["a"] * 40 + ["b"] * 40, "_position": range(80)})
    losses = np.where(np.arange(80) % 40 == 7, 5.0, 0.01)
    (worst,), _ = worst_slices(frame, losses, ("c",))
    condition = Condition("c = 'a'", dict(frame.schema), where="slice")
    (named,), _ = named_slices(frame, losses, {"a": condition})
    for each in (worst, named):
        assert each.low == 0.0 < each.loss < each.high


@pytest.mark.parametrize(
    "column",
    [
        pl.Series("c", [None, None, None], pl.Float64),
        pl.Series("c", [float("nan"), float("inf"), 1.0]),
        pl.Series("c", [None] * 3, pl.String),
        pl.Series("c", [True, None, False]),
        pl.Series("c", ["a", "b", None], pl.Categorical),
        pl.Series("c", [[1], [], None]),
        pl.Series("c", range(60)),
        pl.Series("c", [timedelta(hours=h) for h in range(60)]),
        pl.Series("c", [float("inf"), *range(40)]),
        pl.Series("c", [str(i) for i in range(60)]),
    ],
    ids=lambda column: f"{column.dtype} {column[0]}",
)
def test_any_column_has_a_slice_or_none_for_each_row(column: pl.Series) -> None:
    cut = cells(column)
    assert cut is not None
    assert len(cut.codes) == len(column)
    assert -1 <= cut.codes.min() <= cut.codes.max() < max(1, len(cut.names))
    missing = column.is_null().to_numpy()
    if missing.any():
        assert {cut.names[code] for code in cut.codes[missing]} == {"c is missing"}


# -------------------------------------------------------------------------------------------- page


def test_data_cannot_write_into_the_page() -> None:
    text = page.page(
        Interpretation(
            name=HOSTILE,
            model=HOSTILE,
            rows=1,
            which=HOSTILE,
            target=HOSTILE,
            task="binary",
            classes=(HOSTILE, "b"),
            metric="log_loss",
            value=1.0,
            loss="log loss",
            figures={"log_loss": 1.0, "auc": float("nan")},
            importances=(Importance(column=HOSTILE, worse=1.0, low=0.5, high=1.5),),
            repeats=3,
            quantiles=(
                QuantileCalibration(
                    name=HOSTILE,
                    asked=0.5,
                    whole=Coverage(
                        rows=1, prediction=1.0, observed=1.0, least=1.0, low=0.0, high=1.0
                    ),
                    groups=(),
                ),
            ),
            calibrations=(
                Calibration(rows=1, predicted=0.5, observed=1.0, low=0.0, high=float("inf")),
            ),
            slices=(
                Slice(
                    name=HOSTILE,
                    column=HOSTILE,
                    rows=1,
                    loss=1.0,
                    low=float("-inf"),
                    high=float("inf"),
                    worse=False,
                ),
            ),
            worst_rows=(
                WorstRow(
                    partition=HOSTILE,
                    position=0,
                    label=HOSTILE,
                    prediction=HOSTILE,
                    loss=1.0,
                    values={HOSTILE: HOSTILE},
                ),
            ),
            sentences=(HOSTILE,),
            left_out=(HOSTILE,),
        )
    )
    require_inert(text)
    assert "{{ 7*7 }}" in text
    assert "inf" not in text.lower().split("</style>")[-1]
