"""The evaluation of classes that come and go: the figures of all rows stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.quality.evaluation import Evaluation
from engine.types import Features

FEATURES = Features(numeric=("x",), target="y", task="multiclass", max_classes=3)


def added(evaluation: Evaluation, target: list[int], predicted: list[int], classes: int) -> None:
    """Add rows: -1 is no prediction."""
    scores = np.zeros((len(target), classes))
    for row, number in enumerate(predicted):
        if number >= 0:
            scores[row, number] = 1
    frame = pl.DataFrame({"x": [0.0] * len(target)})
    guesses = {"nearest": np.array(target)}
    evaluation.update(frame, np.array(target), scores, baselines=guesses)


def growing() -> Evaluation:
    return Evaluation(Evaluation.Settings(window=100), FEATURES, ("nearest",))


def test_new_classes_leave_what_was_counted() -> None:
    evaluation = growing()
    evaluation.set_classes(["a"], [-1])
    added(evaluation, [0, 0], [-1, 0], 1)
    evaluation.set_classes(["a", "b"], [0, -1])
    added(evaluation, [1, 1, 0], [0, 1, 0], 2)
    report = evaluation.report()
    assert report["classes"] == ["a", "b"]
    assert report["all"]["rows"] == report["window"].get("rows", 5) == 5
    assert report["all"]["confusion"] == [[2, 0], [1, 1]]
    assert report["all"]["outside_confusion"] == [1, 0]
    assert report["all"]["accuracy"] == report["window"]["accuracy"] == pytest.approx(3 / 5)
    assert report["all"]["baselines"]["nearest"] == {"accuracy": 1.0, "rows": 5}
    assert "auc" not in report["all"]  # two classes for now, and no task of two classes
    assert evaluation.history()["model"].to_list() == [pytest.approx(2 / 5)]


def test_classes_that_leave_still_count_in_the_figures_of_all_rows() -> None:
    evaluation = growing()
    evaluation.set_classes(["a", "b", "c", "d"], [-1] * 4)
    added(evaluation, [0, 1, 2, 3, 0, 2], [0, 1, 0, 3, 2, 2], 4)
    evaluation.set_classes(["b", "d", "c"], [1, 3, 2])
    report = evaluation.report()
    assert report["all"]["rows"] == 6
    assert report["all"]["accuracy"] == pytest.approx(4 / 6)
    assert report["all"]["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert report["all"]["outside_confusion"] == [3, 1]
    assert report["window"]["accuracy"] == 1.0  # over the rows of classes that are there
    assert set(report["all"]["by_class"]) == {"b", "c", "d"}


def test_it_goes_on_to_the_bit_after_a_restart() -> None:
    evaluation = growing()
    evaluation.set_classes(["a", "b", "c"], [-1] * 3)
    added(evaluation, [0, 1, 2, 2], [0, 1, 2, 1], 3)
    evaluation.set_classes(["c", "b", "e"], [2, 1, -1])
    added(evaluation, [0, 2], [0, -1], 3)
    second = growing()
    second.set_classes(["c", "b", "e"], [-1] * 3)
    second.load_state_dict(evaluation.state_dict())
    for each in (evaluation, second):
        added(each, [1, 2], [1, 2], 3)
    reports: list[Any] = [each.report() for each in (evaluation, second)]
    assert reports[0] == reports[1]
    assert reports[0]["all"]["rows"] == 8
