"""Where class 1 begins: the aim is met on the rows it is chosen by, and nearly on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score

from engine.config import ModelSettings, validate
from engine.quality.threshold import MIN_ROWS, Threshold, ThresholdSettings, choose_threshold
from engine.types import UserError


def rows(n: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Classes, one in twenty of them 1, and calibrated scores."""
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-(2 * rng.normal(size=n) - 4.5)))
    return (rng.random(n) < scores).astype(np.int64), scores


def choose(given: Any) -> tuple[float, NDArray[Any], NDArray[Any]]:
    target, scores = rows(20_000)
    value = choose_threshold(ThresholdSettings.read(given), target, scores)
    assert value is not None
    return value, target, scores


@pytest.mark.parametrize("wanted", [0.3, 0.6])
def test_the_largest_recall_with_a_precision(wanted: float) -> None:
    value, target, scores = choose({"precision": wanted})
    reached, recall, _ = precision_recall_curve(target, scores)
    assert precision_score(target, scores > value) >= wanted
    best = recall[reached >= wanted].max()
    assert recall_score(target, scores > value) == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("wanted", [0.3, 0.9, 1.0])
def test_the_best_precision_with_a_recall(wanted: float) -> None:
    value, target, scores = choose({"recall": wanted})
    reached, recall, _ = precision_recall_curve(target, scores)
    assert recall_score(target, scores > value) >= wanted
    best = reached[recall >= wanted].max()
    assert precision_score(target, scores > value) == pytest.approx(best, abs=0.01)


def test_the_largest_f1() -> None:
    value, target, scores = choose("f1")
    tried = [f1_score(target, scores > t) for t in np.quantile(scores, np.linspace(0.5, 1, 200))]
    assert f1_score(target, scores > value) >= max(tried) - 0.002


def test_the_lowest_cost_of_calibrated_scores_is_where_it_must_be() -> None:
    """Elkan, "The Foundations of Cost-Sensitive Learning" (2001)."""
    value, _, _ = choose({"false_positive": 1, "false_negative": 9})
    assert value == pytest.approx(0.1, abs=0.03)
    never, target, scores = choose({"false_positive": 1e9, "false_negative": 1e-9})
    always, _, _ = choose({"false_positive": 1e-9, "false_negative": 1e9})
    assert not (scores > never)[target == 0].any()
    assert (scores > always)[target == 1].all()


def test_an_aim_that_is_out_of_reach_comes_as_near_as_it_can() -> None:
    rng = np.random.default_rng(1)
    target, scores = rng.integers(0, 2, 1_000), rng.random(1_000).round(1)
    value = choose_threshold(ThresholdSettings(precision=1.0), target, scores)
    assert value is not None
    assert precision_score(target, scores > value) > 0.5


def test_between_the_rows_it_lies_in_the_middle() -> None:
    target = np.repeat([0, 1], 100)
    value = choose_threshold(ThresholdSettings(f1=True), target, np.where(target, 0.9, 0.1))
    assert value == pytest.approx(0.5, abs=0.01)


def test_it_is_chosen_anew_as_rows_come_and_goes_on_from_a_snapshot() -> None:
    target, scores = rows(4_000)
    whole, cut = (Threshold(ThresholdSettings(recall=0.8), 1_000) for _ in range(2))
    assert whole.value == 0.5
    for start in range(0, 4_000, 40):
        part = slice(start, start + 40)
        whole.update(target[part], scores[part])
        cut.update(target[part], scores[part])
        state = cut.snapshot()
        cut = Threshold(ThresholdSettings(recall=0.8), 1_000)
        cut.restore(state)
    assert cut.value == whole.value != 0.5
    late = scores[-1_000:][target[-1_000:] == 1]
    assert (late > whole.value).mean() == pytest.approx(0.8, abs=0.1)


def test_too_few_rows_choose_nothing_and_a_given_one_stays() -> None:
    target, scores = np.r_[np.zeros(500, np.int64), np.ones(MIN_ROWS - 1, np.int64)], np.zeros(509)
    assert choose_threshold(ThresholdSettings(f1=True), target, scores) is None
    given = Threshold(ThresholdSettings(value=0.2), 100)
    given.update(*rows(1_000))
    given.restore(Threshold(ThresholdSettings(value=0.7), 100).snapshot())
    assert given.value == 0.2


@pytest.mark.parametrize(
    "given",
    [2, -0.1, 1.0, "f2", {}, {"precision": 2}, {"precision": 0.5, "recall": 0.5}, [0.5],
     {"false_positive": 1}, {"f1": False}, {"precisoin": 0.5}],
    ids=str,
)  # fmt: skip
def test_what_is_no_threshold(given: Any) -> None:
    table = {"task": "binary", "target": "y", "classes": ["a", "b"], "threshold": given}
    with pytest.raises(UserError) as error:
        validate(ModelSettings, table, "model", "file.toml")
    sentence = str(error.value)
    assert 'expected a number from 0 to 1, "f1", {precision = 0.9}, {recall = 0.8} or ' in sentence
    assert "{false_positive = 1, false_negative = 20} for 'threshold'" in sentence


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_a_threshold_is_for_two_classes(task: str) -> None:
    with pytest.raises(UserError, match="no threshold, which is for task binary"):
        validate(ModelSettings, {"task": task, "target": "y", "threshold": 0.3}, "model", "f")
