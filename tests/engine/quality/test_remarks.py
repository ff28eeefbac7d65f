"""What a reader of a report should not miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.quality.evaluation import Evaluation
from engine.quality.report import remarks
from engine.types import Features


def report_of(labels: list[int]) -> dict[str, Any]:
    """Of a model that is always right, over rows with these labels."""
    codes = np.array(labels)
    before = float((codes[1:] == codes[:-1]).mean())
    counts = np.bincount(codes, minlength=2)
    share = float(counts.max() / len(codes))
    whole = {
        "rows": len(codes),
        "accuracy": 1.0,
        "confusion": np.diag(counts).tolist(),
        "baselines": {
            "majority class": {"accuracy": share, "rows": len(codes)},
            "last class": {"accuracy": before, "rows": len(codes) - 1},
        },
        "prior": {"accuracy": share},
    }
    return {"all": whole, "classes": ["no", "yes"], "slices": {}}


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0] * 100 + [1] * 100, True),  # a folder per class
        ([0] * 190 + [1] * 10, True),
        (([0] * 50 + [1] * 50) * 4, True),
        ((RNG.random(400) < 0.5).astype(int).tolist(), False),
        ((RNG.random(400) < 0.01).astype(int).tolist(), False),  # nearly all agree by chance
        ([0] * 200, False),
        ([0] * 20 + [1] * 20, False),  # too few to say
    ],
)
def test_rows_in_blocks_of_a_class_are_told(labels: list[int], told: bool) -> None:
    lines = [line for line in remarks(report_of(labels)) if "class of the row before" in line]
    assert len(lines) == told
    assert all("shuffle_files" in line for line in lines)


def test_classes_without_a_row_are_told() -> None:
    assert remarks(report_of([1, 1, 1]))[-1] == (
        "No row has 1 of the 2 classes, 'no': the figures do not say how well the model tells them "
        "apart."
    )
    many = report_of([7] * 9)
    many["classes"] = list("abcdefgh")
    assert "No row has 7 of the 8 classes, 'a', 'b', 'c', 'd', 'e' and 2 more" in remarks(many)[-1]
    grows = report_of([1, 1])
    grows["all"]["outside_confusion"] = [0, 0]
    for report in (report_of([0, 1]), grows):
        assert not any("No row has" in line for line in remarks(report))


@pytest.mark.parametrize(("part", "told"), [(0.0, True), (-0.1, True), (0.5, False)])
def test_a_regression_that_a_constant_beats_is_told(part: float, told: bool) -> None:
    """Of rows that do not follow one another, which the last value says little of."""
    target = np.random.default_rng(0).normal(50, 10, 4_000).astype(np.float32)
    evaluation = Evaluation(
        Evaluation.Settings(), Features(numeric=(), target="y", task="regression")
    )
    scores = 50.2 + part * (target.astype(np.float64) - 50)
    evaluation.update(pl.DataFrame({"n": range(4_000)}), target, scores)
    report = evaluation.report()
    errors = [float(np.sqrt(np.mean((x - target) ** 2))) for x in (target.mean(), scores)]
    sentence = (
        f"The mean of the target is no worse than the model: RMSE {errors[0]:.4g} against "
        f"{errors[1]:.4g}, over 4,000 rows."
    )
    assert report["all"]["mae"] < report["all"]["baselines"]["last value"]["mae"]
    assert remarks(report) == ([sentence] if told else [])


def test_no_constant_is_named_for_several_targets() -> None:
    """Their R2 is a mean, and their errors are of different sizes."""
    target = np.random.default_rng(0).normal((50, 5), (10, 1), (4_000, 2)).astype(np.float32)
    features = Features(numeric=(), target="a", targets=("a", "b"), task="regression")
    evaluation = Evaluation(Evaluation.Settings(), features)
    evaluation.update(pl.DataFrame({"n": range(4_000)}), target, np.tile((50.2, 5.1), (4_000, 1)))
    report = evaluation.report()
    assert report["all"]["r2"] <= 0
    assert remarks(report) == []
