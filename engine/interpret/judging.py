"""Labels beside scores: metrics over rows, and the loss of each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.quality.measures import (
    EPSILON,
    ClassificationSums,
    RegressionSums,
    probabilities,
)
from engine.types import Features, UserError, pinball_losses, predicted_classes
from engine.types.arrays import Bools, Floats, Ints

SLACK = 1e-3
"""How far rounding may take the sum of a row's probabilities from 1."""
NAMES: Mapping[str, str] = {
    "pinball": "pinball loss",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R2",
    "log_loss": "log loss",
    "brier": "Brier score",
    "accuracy": "accuracy",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
}
"""Metric -> what people call it."""
BETTER_HIGH = ("r2", "accuracy", "f1", "auc", "average_precision")
OF_REGRESSION = ("mae", "rmse", "r2")
OF_QUANTILES = ("pinball", *OF_REGRESSION)
OF_TWO = ("auc", "average_precision")
OF_PROBABILITIES = ("log_loss", "brier", "auc", "average_precision", "calibration_error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Rows with a label and a finite score.

    Attributes:
        rows: which rows of the frame these are, ascending, shape (n,).
        target: numbers, or class numbers, shape (n,).
        scores: values or probabilities of class 1, shape (n,), or of all k classes, shape (n, k).
        quantiles: of a model of several, shape (n, quantiles), of which `scores` are the medians.
    """

    rows: Ints
    target: NDArray[Any]
    scores: Floats
    quantiles: Floats | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, mask: Bools) -> Judged:
        """Return those of the rows where the mask, shape (n,), is true."""
        several = None if self.quantiles is None else self.quantiles[mask]
        return Judged(
            rows=self.rows[mask], target=self.target[mask], scores=self.scores[mask],
            quantiles=several,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Measures scores against labels.

    Attributes:
        features: task, classes and threshold.
        probabilistic: whether the scores of classes are probabilities; else they only name a class.
    """

    features: Features
    probabilistic: bool

    @property
    def regression(self) -> bool:
        """Whether numbers are predicted."""
        return self.features.task == "regression"

    @property
    def _of_quantiles(self) -> bool:
        """Whether quantiles are predicted; a single median has the absolute error, which is twice
        its pinball loss."""
        return self.features.levels not in ((), (0.5,))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the task, the one that counts first."""
        if self.regression:
            return OF_QUANTILES if self._of_quantiles else OF_REGRESSION
        names = [name for name in NAMES if name not in OF_QUANTILES]
        if self.features.task != "binary":
            names = [name for name in names if name not in OF_TWO]
        if not self.probabilistic:
            names = [name for name in names if name not in OF_PROBABILITIES]
        return tuple(names)

    def metric(self, name: str | None) -> str:
        """Return the name of a metric of the task. Raises: UserError if it is none."""
        if name is None:
            return self.metrics[0]
        if name not in self.metrics:
            raise UserError(
                f"Expected --metric of {', '.join(self.metrics)} for task {self.features.task}"
                f"{'' if self.regression or self.probabilistic else ' without probabilities'}, got "
                f"'{name}'."
            )
        return name

    def figures(self, judged: Judged) -> dict[str, float]:
        """Return metric -> value."""
        target, scores = judged.target, judged.scores
        values: Mapping[str, Any]
        if self.regression:
            values = RegressionSums.empty(1).add(target, scores[:, None]).metrics()
            if self._of_quantiles and len(judged):
                values = {**values, "pinball": self.losses(judged).mean()}
        else:
            values = self.sums(judged).metrics()
        return {name: float(values.get(name, math.nan)) for name in self.metrics}

    def sums(self, judged: Judged) -> ClassificationSums:
        """Return the sums of classes, without baselines."""
        none = np.empty((len(judged), 0), np.int64)
        known, grows = len(self.features.classes), self.features.max_classes > 0
        empty = ClassificationSums.empty(known, 0, grows=grows)
        return empty.add(judged.target, judged.scores, none, self.features.threshold)

    def measure(self, metric: str) -> Callable[[Judged], float]:
        """Return a function from rows to an error: the higher, the worse."""
        sign = -1.0 if metric in BETTER_HIGH else 1.0
        return lambda judged: sign * self.figures(judged)[metric]

    @property
    def loss(self) -> str:
        """The name of a row's loss; its mean is a metric."""
        if self.regression:
            return "pinball loss" if self._of_quantiles else "absolute error"
        return "log loss" if self.probabilistic else "error"

    def losses(self, judged: Judged) -> Floats:
        """Return the loss of each row, (n,); of several quantiles their mean."""
        if self._of_quantiles:
            scores = judged.scores[:, None] if judged.quantiles is None else judged.quantiles
            several: Floats = pinball_losses(judged.target, scores, self.features.levels)
            return np.asarray(several.mean(axis=1))
        if self.regression:
            distances: Floats = np.abs(judged.scores - judged.target)
            return distances
        if not self.probabilistic:
            wrong: Floats = (self.predicted(judged) != judged.target).astype(np.float64)
            return wrong
        losses: Floats = -np.log(np.clip(self.true_probabilities(judged), EPSILON, 1 - EPSILON))
        return losses

    def predicted(self, judged: Judged) -> Ints:
        """Return the predicted class of each row, -1 for none, (n,)."""
        return predicted_classes(judged.scores, self.features.threshold)

    def true_probabilities(self, judged: Judged) -> Floats:
        """Return the probability of each row's true class, (n,)."""
        given: Floats = probabilities(judged.scores)[np.arange(len(judged)), judged.target]
        return given


def are_probabilities(scores: Floats) -> bool:
    """Return whether scores of classes, (n,) or (n, k), are probabilities and not only names of
    classes (0 and 1), or numbers of any size."""
    each = probabilities(scores)
    inside = (each >= -SLACK).all() and (each <= 1 + SLACK).all()
    whole = (np.abs(each.sum(axis=1) - 1) <= SLACK).all()
    return bool(inside and whole and ((each > 0) & (each < 1)).any())


def normal(share: float) -> float:
    """Return how many standard errors around a mean hold that share of a normal distribution."""
    return NormalDist().inv_cdf((1 + share) / 2)


def student(share: float, freedom: int) -> float:
    """Return the same for Student's distribution, by its expansion (Fisher & Cornish, 1960), within
    3 % for two degrees of freedom and 0.1 % for nine."""
    z = normal(share)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


__all__ = ["NAMES", "Judge", "Judged", "are_probabilities", "normal", "student"]
