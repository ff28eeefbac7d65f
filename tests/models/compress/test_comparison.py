"""The judging of a candidate on arrays: right figures and intervals, a verdict that holds."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    log_loss,
    mean_pinball_loss,
    recall_score,
    roc_auc_score,
)

from models.compress.comparison import (
    Figure,
    Rules,
    compare_classes,
    compare_quantiles,
    compare_regression,
    speed,
)

RULES = Rules()
RUNS = 100


def binary(
    n: int, seed: int, noise: float = 0.0
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Classes, one in ten of them 1, a model's scores, and those of one with more noise."""
    rng = np.random.default_rng(seed)
    target = (rng.random(n) < 0.1).astype(np.int64)
    raw = rng.normal(size=n) + 1.5 * target - 2.5
    worse = raw + noise * rng.normal(size=n)
    return target, 1 / (1 + np.exp(-raw)), 1 / (1 + np.exp(-worse))


def named(figures: tuple[Figure, ...]) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures}


def passes(figures: tuple[Figure, ...]) -> bool:
    return all(figure.refusal is None for figure in figures)


@pytest.mark.parametrize("digits", [1, 12])
def test_figures_of_two_classes_are_scikit_learns(digits: int) -> None:
    """With many equal scores and with none."""
    target, base, other = binary(2_000, 0, 1.0)
    base, other = base.round(digits), other.round(digits)
    figures = compare_classes(target, base, other, RULES, names=("no", "yes"), threshold=0.2)
    found = named(figures)
    assert found["error"].value == pytest.approx(((other > 0.2) != target).mean())
    assert found["AUC"].value == pytest.approx(roc_auc_score(target, other))
    precision = average_precision_score(target, other)
    assert found["average precision"].value == pytest.approx(precision)
    if digits == 12:
        assert found["log loss"].value == pytest.approx(log_loss(target, other))
    auc = roc_auc_score(target, base) - roc_auc_score(target, other)
    assert found["AUC"].loss == pytest.approx(100 * auc)
    worst = figures[-1]
    said = (other > 0.2).astype(int)
    recalls = {
        f"recall of '{n}'": recall_score(target, said, pos_label=c)
        for c, n in enumerate(("no", "yes"))
    }
    assert worst.value == pytest.approx(recalls[worst.name])
    for figure in figures:
        assert figure.low <= figure.value <= figure.high
        assert figure.loss_low <= figure.loss <= figure.loss_high


def test_figures_of_several_classes_are_scikit_learns() -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 4, 1_000)
    raw = rng.normal(size=(1_000, 5)) + 2 * np.eye(5)[target]  # nobody is of the fifth class
    other = raw + rng.normal(size=raw.shape)
    one, two = (np.exp(r) / np.exp(r).sum(axis=1, keepdims=True) for r in (raw, other))
    found = named(compare_classes(target, one, two, RULES, names=tuple("abcde")))
    aucs = [roc_auc_score(target == c, two[:, c]) for c in range(4)]
    precisions = [average_precision_score(target == c, two[:, c]) for c in range(4)]
    assert found["AUC"].value == pytest.approx(np.mean(aucs))
    assert found["average precision"].value == pytest.approx(np.mean(precisions))
    assert found["log loss"].value == pytest.approx(log_loss(target, two, labels=range(5)))


def test_figures_of_a_regression() -> None:
    rng = np.random.default_rng(2)
    target = rng.normal(size=500) ** 3
    base, other = target + rng.normal(size=500), target + 2 * rng.normal(size=500)
    found = named(compare_regression(target, base, other, RULES))
    errors = np.abs(other - target)
    assert found["MAE"].value == pytest.approx(errors.mean())
    assert found["RMSE"].value == pytest.approx(math.sqrt((errors**2).mean()))
    largest = np.maximum(errors, np.abs(base - target))
    worst = np.argsort(-largest)[:25]
    assert found["MAE of the largest 5%"].value == pytest.approx(errors[worst].mean())
    assert len(found) == 4
    assert all(figure.refusal is not None for figure in found.values())


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_an_interval_of_another_width_is_refused_though_the_median_stays(factor: float) -> None:
    """It holds fewer targets than were asked for, or more."""
    quantiles, normal = (0.1, 0.5, 0.9), np.array([-1.2815516, 0.0, 1.2815516])
    target = np.random.default_rng(3).normal(size=5_000)
    base = np.tile(normal, (5_000, 1))
    assert passes(compare_quantiles(target, base, base, RULES, quantiles))
    other = factor * base
    found = named(compare_quantiles(target, base, other, RULES, quantiles))
    losses = [mean_pinball_loss(target, other[:, i], alpha=q) for i, q in enumerate(quantiles)]
    assert found["pinball loss"].value == pytest.approx(np.mean(losses))
    inside = (np.abs(target) <= other[0, 2]).mean()
    assert found["coverage error"].value == pytest.approx(abs(inside - 0.8))
    assert found["coverage error"].refusal is not None
    assert found["MAE"].refusal is None


@pytest.mark.parametrize("target", [np.zeros(200), np.r_[np.zeros(190), np.ones(10)]])
def test_a_target_of_few_values(target: NDArray[Any]) -> None:
    """A model without an error is no division by zero: the same one passes, another does not."""
    assert passes(compare_regression(target, target, target, RULES))
    figures = compare_regression(target, target, target + 1e-3, RULES)
    assert all(figure.refusal is not None for figure in figures)


def test_one_class_only_has_no_ranking() -> None:
    target, scores = np.zeros(100, np.int64), np.full(100, 0.1)
    figures = compare_classes(target, scores, scores, RULES, names=("no", "yes"))
    assert [figure.name for figure in figures] == ["error", "log loss", "recall of 'no'"]
    assert passes(figures)


def test_scores_that_are_not_numbers_pass_nowhere() -> None:
    target, base, _ = binary(200, 3)
    figures = compare_classes(target, base, np.full(200, np.nan), RULES, names=("no", "yes"))
    assert {f.name for f in figures if f.refusal} >= {"log loss", "AUC", "average precision"}
    assert not passes(compare_regression(base, base, np.full(200, np.nan), RULES))


# ----------------------------------------------------------------------------- a verdict that holds


@pytest.mark.full
def test_the_model_itself_and_one_as_good_pass_every_time() -> None:
    for seed in range(RUNS):
        target, base, _ = binary(300, seed)
        rng = np.random.default_rng(seed)
        for other in (base, base * (1 + 1e-4 * rng.normal(size=300))):
            assert passes(compare_classes(target, base, other, RULES, names=("no", "yes")))
        number = rng.normal(size=600)
        one = number + 0.3 * rng.normal(size=600)
        for other in (one, one + 1e-4 * rng.normal(size=600)):
            assert passes(compare_regression(number, one, other, RULES))


@pytest.mark.full
def test_a_worse_model_never_passes() -> None:
    """Nor does one that is only as good by chance: few rows are no proof."""
    for seed in range(RUNS):
        for n, noise in ((200, 0.5), (600, 1.0)):
            target, base, other = binary(n, seed, noise)
            assert not passes(compare_classes(target, base, other, RULES, names=("no", "yes")))
        rng = np.random.default_rng(seed)
        number = rng.normal(size=600)
        one = number + 0.3 * rng.normal(size=600)
        assert not passes(compare_regression(number, one, one + 0.05, RULES))


def test_a_loss_at_the_bound_passes_no_more_often_than_the_confidence_says() -> None:
    passed = 0
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        target = rng.normal(size=400)
        base = target + rng.normal(size=400)
        other = target + 1.005 * rng.normal(size=400)  # MAE is 0.5 % worse, the allowed
        found = named(compare_regression(target, base, other, RULES))
        passed += found["MAE"].refusal is None
    assert passed <= 6  # 2.5 % of 100, by the binomial distribution at 97 %


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str) -> None:
    held = 0
    for seed in range(RUNS):
        if kind == "regression":
            noise = np.random.default_rng(seed).normal(size=300)
            figure = compare_regression(np.zeros(300), noise, noise, RULES)[0]
            truth = math.sqrt(2 / math.pi)
        else:
            rng = np.random.default_rng(seed)
            target, scores = (rng.random(300) < 0.02).astype(np.int64), np.full(300, 0.1)
            figure = compare_classes(target, scores, scores, RULES, names=("no", "yes"))[0]
            truth = 0.02
        held += figure.low <= truth <= figure.high
    assert held >= 88


def test_a_busy_machine_changes_no_verdict_on_speed() -> None:
    """Runs that follow each other are slowed together, and some by far: with a quiet machine and
    with a busy one, twice as fast passes and equally fast does not."""
    for seed in range(RUNS):
        for busy in (0.01, 1.0):
            rng = np.random.default_rng(seed)
            load = np.exp(busy * rng.normal(size=60))
            burst = np.where(rng.random((60, 2)) < 0.05, 10.0, 1.0)
            own = np.exp(0.02 * rng.normal(size=(60, 2))) * burst * load[:, None]
            assert speed(own[:, 0], own[:, 1] / 2, RULES)[1] > 1.1
            assert speed(own[:, 0], own[:, 1], RULES)[1] < 1.1


def test_the_same_rows_give_the_same_figures() -> None:
    target, base, other = binary(500, 4, 0.5)
    names = ("no", "yes")
    one = compare_classes(target, base, other, RULES, names=names)
    assert compare_classes(target, base, other, RULES, names=names) == one
    seeded = compare_classes(target, base, other, replace(RULES, seed=1), names=names)
    assert [f.loss for f in seeded] == [f.loss for f in one]
    assert [f.loss_high for f in seeded] != [f.loss_high for f in one]


def test_a_figure_that_is_better_and_not_surely_so_says_by_how_much() -> None:
    figure = Figure(
        name="coverage error", value=1.0, low=0.5, high=1.5, loss=-0.96, loss_low=-2.0,
        loss_high=0.7, allowed=0.5, unit="pt",
    )  # fmt: skip
    said = "coverage error not surely within 0.5 pt: better by 0.96 pt (worse by -2.00 to 0.70)"
    assert figure.refusal == said
