"""Figures of classes from sums: against scikit-learn, however the rows come in parts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    mean_absolute_error,
    mean_pinball_loss,
    mean_tweedie_deviance,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from engine.quality.evaluation import Evaluation
from engine.quality.measures import (
    CALIBRATION_GROUPS,
    ClassificationSums,
    RegressionSums,
    bins,
    edges,
    reliability,
)
from engine.quality.report import rare_classes, tables
from engine.types import Features, UserError
from tests.size import examples


def rows(n: int, rate: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Classes, a share of `rate` of them 1, and well calibrated scores of about that size."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=n) + np.log(rate / (1 - rate))
    scores = 1 / (1 + np.exp(-raw))
    return (rng.random(n) < scores).astype(np.int64), scores


def summed(
    target: NDArray[Any], scores: NDArray[Any], cuts: list[int], threshold: float = 0.5
) -> ClassificationSums:
    k = 2 if scores.ndim == 1 else scores.shape[1]
    sums = ClassificationSums.empty(k, 0)
    for start, stop in zip([0, *cuts], [*cuts, len(target)], strict=True):
        none = np.empty((stop - start, 0), np.int64)
        sums = sums.add(target[start:stop], scores[start:stop], none, threshold)
    return sums


def test_each_of_several_targets_is_judged() -> None:
    """Over all of them, and each as a slice beside its own last value."""
    features = Features(numeric=(), targets=("y", "z"))
    settings = Evaluation.Settings(slices={"even": "n % 2 = 0"}, window=3)
    evaluation = Evaluation(settings, features)
    evaluation.bind({"n": pl.Int64()})
    nan = np.nan
    target = np.array([[1, nan], [2, 10], [nan, 30], [4, 50]], np.float32)
    scores = np.array([[1.5, 9], [2, 12], [3, 30], [4, 46]])
    for part in (slice(0, 1), slice(1, 4)):
        frame = pl.DataFrame({"n": range(4)})[part]
        evaluation.update(frame, target[part], scores[part])
    again = Evaluation(settings, features)
    again.bind({"n": pl.Int64()})
    again.load_state_dict(evaluation.state_dict())
    for one in (evaluation, again):
        report = one.report()
        assert report["rows"] == 3
        assert report["slices"]["y"]["mae"] == pytest.approx(0.5 / 3)
        assert report["slices"]["z"]["mae"] == 2
        assert report["all"]["mae"] == pytest.approx(6.5 / 6)
        assert report["all"]["r2"] == pytest.approx(
            (report["slices"]["y"]["r2"] + report["slices"]["z"]["r2"]) / 2
        )
        assert report["slices"]["even"]["mae"] == pytest.approx(0.25)
        assert "r2" not in report["slices"]["even"]
        assert report["slices"]["z"]["baselines"]["last value"] == {
            "mae": 20, "rmse": 20, "rows": 2, "model_mae": 2,
        }  # fmt: skip
    with pytest.raises(UserError, match="is what the rows with that target are called"):
        Evaluation(Evaluation.Settings(slices={"z": "n > 1"}), features)


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_the_deviance_of_counts_and_amounts(power: float) -> None:
    rng = np.random.default_rng(0)
    target, mean = rng.poisson(3, 90).astype(float), rng.gamma(3, 1, 90)
    sums = RegressionSums.empty(1, power)
    for part in (slice(0, 1), slice(1, 50), slice(50, 90)):
        sums = sums.add(target[part], mean[part, None])
    expected = mean_tweedie_deviance(target, mean, power=power)
    assert sums.metrics()["deviance"] == pytest.approx(expected)
    assert RegressionSums.restore(sums.snapshot()).metrics() == sums.metrics()
    assert "deviance" not in RegressionSums.empty(1).add(target, mean[:, None]).metrics()


def test_quantiles_are_judged_and_their_median_stands_beside_the_baselines() -> None:
    quantiles = (0.1, 0.5, 0.9)
    features = Features(numeric=(), target="y", quantiles=quantiles)
    settings = Evaluation.Settings(window=40, slices={"late": "n >= 50"})
    evaluation = Evaluation(settings, features)
    evaluation.bind({"n": pl.Int64()})
    rng = np.random.default_rng(0)
    target = rng.normal(size=90).astype(np.float32)
    scores = np.sort(rng.normal(size=(90, 3)))
    for part in (slice(0, 1), slice(1, 50), slice(50, 90)):
        frame = pl.DataFrame({"n": range(90)})[part]
        evaluation.update(frame, target[part], scores[part])
    again = Evaluation(settings, features)
    again.bind({"n": pl.Int64()})
    again.load_state_dict(evaluation.state_dict())
    assert again.report() == evaluation.report()
    report = evaluation.report()
    for rows, group in ((slice(0, 90), "all"), (slice(50, 90), "window")):
        y, said, figures = target[rows].astype(np.float64), scores[rows], report[group]
        losses = [mean_pinball_loss(y, said[:, i], alpha=q) for i, q in enumerate(quantiles)]
        assert figures["pinball"] == pytest.approx(np.mean(losses))
        inside = (said[:, 0] <= y) & (y <= said[:, 2])
        assert figures["coverage"] == pytest.approx(inside.mean())
        assert figures["coverage_asked"] == 0.8
        assert figures["width"] == pytest.approx((said[:, 2] - said[:, 0]).mean())
        assert figures["mae"] == pytest.approx(mean_absolute_error(y, said[:, 1]))
        for i, (q, loss) in enumerate(zip(quantiles, losses, strict=True)):
            assert figures["quantiles"][f"q{100 * q:g}"] == {
                "asked": q,
                "below": pytest.approx((y <= said[:, i]).mean()),
                "pinball": pytest.approx(loss),
            }
    window = {name: value for name, value in report["window"].items() if name != "baselines"}
    assert report["slices"]["late"].items() >= window.items()
    assert report["all"]["baselines"]["last value"]["model_mae"] == pytest.approx(
        mean_absolute_error(target[1:], scores[1:, 1])
    )
    (table,) = (t for t in tables(report) if isinstance(t, Table) and t.title == "quantiles")
    asked = [list(column.cells) for column in table.columns][1]
    assert asked == ["10%", "50%", "90%", "80%"]


@pytest.mark.parametrize("rate", [0.3, 0.02, 0.0005, 1e-5])
def test_two_classes_however_rare_the_second(rate: float) -> None:
    target, scores = rows(400_000, rate)
    target[:3] = 1
    made = summed(target, scores, [100_000], rate).metrics(2 * rate)
    assert made["auc"] == pytest.approx(roc_auc_score(target, scores), abs=1e-4)
    precision = average_precision_score(target, scores)
    assert made["average_precision"] == pytest.approx(precision, rel=0.01)
    assert made["brier"] == pytest.approx(brier_score_loss(target, scores))
    reached, recall, _ = precision_recall_curve(target, scores)
    best = recall[reached >= 2 * rate].max()
    assert made["recall_at_precision"] == pytest.approx(best, abs=0.05)
    assert np.array_equal(made["confusion"], confusion_matrix(target, scores > rate))
    assert made["calibration_error"] < 0.3 * rate + 1e-4


@pytest.mark.parametrize("first", [True, False])
def test_figures_of_a_class_are_its_own_wherever_it_stands(first: bool) -> None:
    """The rare class is class 1, or class 0."""
    target, scores = rows(200_000, 0.02)
    if first:
        target, scores = 1 - target, 1 - scores
    made = summed(target, scores, [], 0.9 if first else 0.1).by_class(0.1)
    predicted = (scores > (0.9 if first else 0.1)).astype(np.int64)
    each = precision_recall_fscore_support(target, predicted, zero_division=0)
    for number, figures in enumerate(made):
        own = scores if number else 1 - scores
        true = target == number
        got = [figures[key] for key in ("precision", "recall", "f1", "rows")]
        np.testing.assert_allclose(got, [values[number] for values in each])
        expected = average_precision_score(true, own)
        assert figures["average_precision"] == pytest.approx(expected, rel=0.01)
        reached, recall, _ = precision_recall_curve(true, own)
        best = recall[reached >= 0.1].max()
        assert figures["recall_at_precision"] == pytest.approx(best, abs=0.02)


def test_figures_of_each_of_several_classes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([0.3, 3, 3], 5_000)
    target = np.array([rng.choice(3, p=p) for p in scores])
    made = summed(target, scores, [1_000]).by_class()
    each = precision_recall_fscore_support(target, scores.argmax(axis=1))
    for number, figures in enumerate(made):
        got = [figures[key] for key in ("precision", "recall", "f1", "rows")]
        np.testing.assert_allclose(got, [values[number] for values in each])


@pytest.mark.parametrize("classes", [("yes", "no"), ("no", "yes")])
def test_the_table_of_a_rare_class_is_of_that_class(classes: tuple[str, str]) -> None:
    target, scores = rows(20_000, 0.03)
    if classes[0] == "yes":
        target, scores = 1 - target, 1 - scores
    features = Features(numeric=("a",), target="y", task="binary", classes=classes)
    evaluation = Evaluation(Evaluation.Settings(), features)
    evaluation.bind({})
    evaluation.update(pl.DataFrame({"a": scores}), target, scores)
    made = evaluation.report()
    assert rare_classes(made) == ["yes"]
    rare, own = classes.index("yes"), scores if classes[1] == "yes" else 1 - scores
    console = Console(width=120, record=True)
    console.print(tables(made)[2])
    text = console.export_text()
    expected = average_precision_score(target == rare, own)
    shown = re.search(r"average precision +│ +(0\.\d+) +│ +(0\.\d+)", text)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(expected, rel=0.02)
    assert float(shown[2]) == pytest.approx((target == rare).mean(), abs=1e-4)


@pytest.mark.parametrize("precision", [0.1, 0.5, 0.9])
def test_recall_is_reported_at_the_precision_that_is_asked_for(precision: float) -> None:
    target, scores = rows(20_000, 0.2)
    features = Features(numeric=("a",), target="y", task="binary", classes=("no", "yes"))
    evaluation = Evaluation(Evaluation.Settings(at_precision=precision), features)
    evaluation.bind({})
    evaluation.update(pl.DataFrame({"a": scores}), target, scores)
    made = evaluation.report()
    reached, recall, _ = precision_recall_curve(target, scores)
    best = recall[reached >= precision].max()
    assert made["all"]["recall_at_precision"] == pytest.approx(best, abs=0.01)
    assert made["at_precision"] == precision


def test_calibration_says_how_far_probabilities_are_off() -> None:
    target, scores = rows(200_000, 0.05)
    honest = summed(target, scores, []).metrics()["calibration_error"]
    double = summed(target, np.minimum(2 * scores, 0.999), []).metrics()["calibration_error"]
    assert honest < 0.002
    assert double == pytest.approx(scores.mean(), rel=0.1)
    groups = reliability(summed(target, scores, []).histogram)
    assert len(groups) == CALIBRATION_GROUPS
    assert sum(group["rows"] for group in groups) == 200_000
    for group in groups:
        assert group["rows"] == pytest.approx(200_000 / CALIBRATION_GROUPS, rel=0.05)
        assert group["predicted"] == pytest.approx(group["true"], abs=0.02)


def test_several_classes() -> None:
    rng = np.random.default_rng(1)
    raw = rng.normal(size=(20_000, 4))
    scores = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    target = (scores.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    sums = summed(target, scores, [7])
    made = sums.metrics()
    assert made["brier"] == pytest.approx(((scores - np.eye(4)[target]) ** 2).sum(axis=1).mean())
    assert made["calibration_error"] < 0.02
    assert "auc" not in made
    right = (scores.argmax(axis=1) == target).mean()
    groups = reliability(sums.histogram)
    assert sum(g["rows"] * g["true"] for g in groups) / 20_000 == pytest.approx(right)


def test_what_the_shares_alone_come_to_stands_beside() -> None:
    target, scores = rows(50_000, 0.05)
    share = target.mean()
    alone = np.full(len(target), share)
    prior_metrics, made = (
        summed(target, scores, []).prior_metrics(),
        summed(target, alone, []).metrics(),
    )
    assert prior_metrics["average_precision"] == pytest.approx(made["average_precision"])
    assert prior_metrics["brier"] == pytest.approx(made["brier"])
    assert prior_metrics["log_loss"] == pytest.approx(made["log_loss"])
    assert prior_metrics["auc"] == made["auc"]
    three = np.eye(3)[np.arange(300) % 3] * 0 + 1 / 3
    sums = summed(np.arange(300) % 3, three, [])
    assert sums.prior_metrics()["brier"] == pytest.approx(sums.metrics()["brier"])
    assert ClassificationSums.empty(2, 0).prior_metrics() == {}


@settings(max_examples=examples(50), deadline=None)
@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    cuts=st.lists(st.integers(0, 50), max_size=4),
    seed=st.integers(0, 9),
)
def test_parts_and_a_snapshot_change_nothing(
    scores: list[float], cuts: list[int], seed: int
) -> None:
    given_scores = np.array(scores)
    target = np.random.default_rng(seed).integers(0, 2, len(scores))
    cuts = sorted(min(cut, len(scores)) for cut in cuts)
    whole = summed(target, given_scores, [])
    parts = ClassificationSums.restore(summed(target, given_scores, cuts).snapshot())
    assert np.array_equal(whole.histogram, parts.histogram)
    assert np.array_equal(whole.confusion, parts.confusion)
    assert parts.brier == pytest.approx(whole.brier)
    at = bins(given_scores)
    assert (edges()[at] <= given_scores + 1e-12).all()
    assert (given_scores <= np.append(edges(), 1.0)[at + 1] + 1e-12).all()


def test_the_last_value_is_the_one_that_was_known_when_the_row_came() -> None:
    features = Features(numeric=(), target="y", task="regression")
    evaluation = Evaluation(Evaluation.Settings(), features)
    target, before = np.array([1.0, 2.0, 3.0], np.float32), np.array([np.nan, 5.0, 1.0])
    evaluation.update(pl.DataFrame({"n": range(3)}), target, np.zeros(3), before=before)
    known = evaluation.report()["all"]["baselines"]["last value"]
    assert (known["rows"], known["mae"]) == (2, pytest.approx(2.5))
