"""Prediction metrics as sums: small immutable tables, and the metrics computed from them.

All sums are float64, added in the order of the stream, so the same batches always give the same
bits.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engine.types import pinball_losses, predicted_classes, quantile_name
from engine.types.arrays import Floats, Ints
from engine.types.snapshots import FieldsSnapshot

BINS = 10_000
"""The bins of the score histogram, equally wide in log odds, so that a class of one row in a
million is resolved as finely as one of every second row."""
MAX_LOG_ODDS = 20.0
"""The log odds of the outermost bins."""
CALIBRATION_GROUPS = 15
"""The groups of rows compared for calibration, of about equal size."""
TINY = float(np.finfo(np.float64).tiny)
EPSILON = float(np.finfo(np.float64).eps)


def _no_floats() -> Floats:
    return np.empty(0)


def _no_ints() -> Ints:
    return np.empty(0, np.int64)


def finite_rows(scores: Floats) -> NDArray[np.bool_]:
    """Return which rows have only finite scores; scores (n,) or (n, k)."""
    return np.isfinite(scores if scores.ndim == 1 else scores.sum(axis=1))


@dataclass(frozen=True, slots=True)
class RegressionSums(FieldsSnapshot):
    """Errors of a model and its baselines.

    Attributes:
        n, absolute, square: shape (p,), model first; a baseline counts only the rows where it is
            there.
        model_absolute: the model's absolute error over the rows of each baseline, shape (p,).
        count, mean, m2: of the target (Chan, Golub & LeVeque, 1979), for R2.
        power: of the deviance, see `deviances`; None without one.
        deviance: of the model, summed.
    """

    n: Ints
    absolute: Floats
    square: Floats
    model_absolute: Floats
    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    power: float | None = None
    deviance: float = 0.0

    @classmethod
    def empty(cls, p: int, power: float | None = None) -> Self:
        """Return the sums of no rows, for p predictors including the model."""
        none = np.zeros(p, np.int64)
        return cls(none, np.zeros(p), np.zeros(p), np.zeros(p), power=power)

    def add(self, target: Floats, predictions: Floats) -> Self:
        """Return the sums with rows added: target (n,), predictions (n, p), NaN where a baseline
        has none."""
        if not len(target):
            return self
        error = predictions - target[:, None]
        present = np.isfinite(error)
        error = np.where(present, error, 0.0)
        size = np.abs(error)
        n, mean = len(target), float(target.mean())
        m2 = float(((target - mean) ** 2).sum())
        total, delta = self.count + n, mean - self.mean
        deviance = self.deviance
        if self.power is not None:
            deviance += float(deviances(target, predictions[:, 0], self.power).sum())
        return dataclasses.replace(
            self,
            n=self.n + present.sum(axis=0),
            absolute=self.absolute + size.sum(axis=0),
            square=self.square + (error**2).sum(axis=0),
            model_absolute=self.model_absolute + (size[:, :1] * present).sum(axis=0),
            count=total,
            mean=self.mean + delta * n / total,
            m2=self.m2 + m2 + delta**2 * self.count * n / total,
            deviance=deviance,
        )

    @property
    def rows(self) -> int:
        """The number of rows added."""
        return self.count

    def metrics(self) -> dict[str, Any]:
        """Return MAE, MSE, RMSE and R2 of the model, and the mean deviance where there is one; {}
        before the first row."""
        if not self.n[0]:
            return {}
        mse = float(self.square[0] / self.n[0])
        r2 = 1 - float(self.square[0]) / self.m2 if self.m2 > 0 else math.nan
        mae = float(self.absolute[0] / self.n[0])
        figures = {"mae": mae, "mse": mse, "rmse": math.sqrt(mse), "r2": r2}
        return figures if self.power is None else {**figures, "deviance": self.deviance / self.n[0]}

    def baselines(self, names: list[str]) -> dict[str, dict[str, float]]:
        """Return name -> MAE, RMSE, rows, and the model's MAE on those rows."""
        return {
            name: {
                "mae": float(self.absolute[i] / self.n[i]),
                "rmse": math.sqrt(float(self.square[i] / self.n[i])),
                "rows": int(self.n[i]),
                "model_mae": float(self.model_absolute[i] / self.n[i]),
            }
            for i, name in enumerate(names, 1)
            if self.n[i]
        }


@dataclass(frozen=True, slots=True)
class QuantileSums(RegressionSums):
    """Errors of a model of quantiles, whose median is compared with the baselines.

    Attributes:
        quantiles: shape (k,).
        pinball: loss of each, summed, shape (k,).
        below: targets that are not above each, shape (k,).
        inside: targets from the lowest quantile to the highest.
        width: of that interval, summed.
    """

    quantiles: Floats = field(default_factory=_no_floats)
    pinball: Floats = field(default_factory=_no_floats)
    below: Ints = field(default_factory=_no_ints)
    inside: int = 0
    width: float = 0.0

    @classmethod
    def of(cls, p: int, quantiles: Sequence[float]) -> Self:
        """Return the sums of no rows, for p predictors including the model."""
        k = len(quantiles)
        return dataclasses.replace(
            cls.empty(p),
            quantiles=np.array(quantiles),
            pinball=np.zeros(k),
            below=np.zeros(k, np.int64),
        )

    def add(self, target: Floats, predictions: Floats) -> Self:
        """Return the sums with rows added: target (n,), predictions (n, k - 1 + p), the model's
        quantiles first, rising."""
        if not len(target):
            return self
        scores, baselines = np.split(predictions, [len(self.quantiles)], axis=1)
        medians = scores[:, np.searchsorted(self.quantiles, 0.5)]
        sums = RegressionSums.add(self, target, np.column_stack([medians, baselines]))
        covered = (scores[:, 0] <= target) & (target <= scores[:, -1])
        return dataclasses.replace(
            sums,
            pinball=self.pinball
            + pinball_losses(target, scores, self.quantiles.tolist()).sum(axis=0),
            below=self.below + (target[:, None] <= scores).sum(axis=0),
            inside=self.inside + int(covered.sum()),
            width=self.width + float((scores[:, -1] - scores[:, 0]).sum()),
        )

    def metrics(self) -> dict[str, Any]:
        """Return those of the median; the mean pinball loss; of the interval from the lowest
        quantile to the highest the share of targets inside, the share that was asked for, and the
        mean width; and of each quantile the share of targets below, and its pinball loss."""
        figures: dict[str, Any] = RegressionSums.metrics(self)
        if not figures:
            return {}
        shares = self.quantiles.tolist()
        figures |= {
            "pinball": float(self.pinball.mean()) / self.count,
            "coverage": self.inside / self.count,
            "coverage_asked": round(shares[-1] - shares[0], 12),
            "width": self.width / self.count,
        }
        each = zip(shares, self.below.tolist(), self.pinball.tolist(), strict=True)
        figures["quantiles"] = {
            quantile_name(q): {"asked": q, "below": n / self.count, "pinball": loss / self.count}
            for q, n, loss in each
        }
        return figures


def deviances(target: Floats, mean: Floats, power: float) -> Floats:
    """Return the unit deviance of each row, of Tweedie's distribution (1 is Poisson); shape (n,).

    Args:
        target: 0 or more; mean: as predicted, above 0.
        power: 1 or more, below 2.
    """
    mean = np.maximum(mean, TINY)
    if power == 1:
        logs = np.log(target / mean, where=target > 0, out=np.zeros_like(mean))
        return 2 * (target * logs - target + mean)
    own = target ** (2 - power) / ((1 - power) * (2 - power))
    other = mean ** (2 - power) / (2 - power) - target * mean ** (1 - power) / (1 - power)
    return 2 * (own + other)


@dataclass(frozen=True, slots=True)
class ClassificationSums:
    """Right and wrong classes of a model and its baselines.

    Attributes:
        confusion: shape (k, k): true class, predicted class.
        loss, brier: summed log loss, and summed squared error of all probabilities (of class 1
            alone where there are two).
        histogram: shape (2, BINS): of two classes the true class and the bin of class 1's
            probability, of more whether the predicted class is the true one and its bin.
        n, right: of the baselines, shape (p,).
        outside: rows that the confusion does not count (of classes that have left, or without a
            prediction), and how many of them were right, shape (2,).
        grows: whether classes come and go, so that two of them are no task of two classes.
    """

    confusion: Ints
    loss: float
    brier: float
    histogram: Ints
    n: Ints
    right: Ints
    outside: Ints
    grows: bool = False

    @classmethod
    def empty(cls, k: int, p: int, *, grows: bool = False) -> Self:
        """Return the sums of no rows, for k classes and p baselines."""
        nothing = np.zeros(p, np.int64)
        histogram = np.zeros((2, BINS), np.int64)
        outside = np.zeros(2, np.int64)
        return cls(
            np.zeros((k, k), np.int64), 0.0, 0.0, histogram, nothing, nothing, outside, grows
        )

    def add(self, target: Ints, scores: Floats, baselines: Ints, threshold: float = 0.5) -> Self:
        """Return the sums with rows added: class numbers (n,), scores (n,) or (n, k), baselines'
        classes (n, p), -1 for none; the threshold of class 1 for two classes."""
        if not len(target):
            return self
        k = len(self.confusion)
        class_probabilities = probabilities(scores)
        predicted = predicted_classes(scores, threshold)
        cells = (target * k + predicted)[predicted >= 0]
        confusion = np.bincount(cells, minlength=k * k).reshape(k, k)
        true_probability = np.clip(
            class_probabilities[np.arange(len(target)), target], EPSILON, 1 - EPSILON
        )
        wrong = class_probabilities - np.eye(k)[target]
        if self.two_classes:
            hit, sure, wrong = target, class_probabilities[:, 1], wrong[:, 1]
        else:
            hit, sure = (predicted == target).astype(np.int64), class_probabilities.max(axis=1)
        binned = np.bincount(hit * BINS + bins(sure), minlength=2 * BINS).reshape(2, BINS)
        return type(self)(
            self.confusion + confusion,
            self.loss - float(np.log(true_probability).sum()),
            self.brier + float((wrong**2).sum()),
            self.histogram + binned,
            self.n + (baselines >= 0).sum(axis=0),
            self.right + (baselines == target[:, None]).sum(axis=0),
            self.outside + np.array([len(target) - len(cells), 0]),
            self.grows,
        )

    def renumbered(self, sources: Ints) -> Self:
        """Return the sums for classes of other numbers; see `engine.types.Learner.set_classes`.
        Rows of classes that are no longer there still count, for no class."""
        k = len(self.confusion)
        wide = np.zeros((k + 1, k + 1), np.int64)
        wide[:k, :k] = self.confusion
        at = np.where(sources < 0, k, sources)
        confusion = wide[np.ix_(at, at)]
        left = self.confusion.sum() - confusion.sum(), self.confusion.trace() - confusion.trace()
        outside = self.outside + np.array(left)
        return dataclasses.replace(self, confusion=confusion, outside=outside)

    @property
    def rows(self) -> int:
        """The number of rows added."""
        return int(self.confusion.sum() + self.outside[0])

    @property
    def two_classes(self) -> bool:
        """Whether the task has two classes, of which the second is the one looked for."""
        return len(self.confusion) == 2 and not self.grows

    def metrics(self, at_precision: float = 0.5) -> dict[str, Any]:
        """Return accuracy, precision, recall, F1 (of class 1, or macro), log loss, Brier score,
        calibration error, confusion matrix; for two classes AUC, average precision and the
        largest recall at a precision of `at_precision`."""
        n = self.rows
        if not n:
            return {}
        right, true, predicted = (
            np.diag(self.confusion),
            self.confusion.sum(axis=1),
            self.confusion.sum(axis=0),
        )
        precision = right / np.maximum(predicted, 1)
        recall = right / np.maximum(true, 1)
        both = precision + recall
        f1 = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
        # Macro over the classes that occurred, as scikit-learn does.
        occurred = true + predicted > 0
        part: Any = 1 if self.two_classes else occurred if occurred.any() else ~occurred
        result: dict[str, Any] = {
            "accuracy": float((right.sum() + self.outside[1]) / n),
            "precision": float(np.mean(precision[part])),
            "recall": float(np.mean(recall[part])),
            "f1": float(np.mean(f1[part])),
            "log_loss": self.loss / n,
            "brier": self.brier / n,
            "calibration_error": calibration_error(self.histogram),
        }
        if self.two_classes:
            result["auc"] = auc(self.histogram)
            result["average_precision"] = average_precision(self.histogram)
            result["recall_at_precision"] = recall_at_precision(self.histogram, at_precision)
        if self.grows:
            result["outside_confusion"] = self.outside.tolist()
        return {**result, "confusion": self.confusion.tolist()}

    def by_class(self, at_precision: float = 0.5) -> list[dict[str, float]]:
        """Return rows, precision, recall and F1 of each class against the others; for two
        classes also average precision and the largest recall at a precision of `at_precision`."""
        answers, true = self.confusion.sum(axis=0), self.confusion.sum(axis=1)
        right = np.diag(self.confusion)
        made = [
            {
                "rows": int(n),
                "precision": float(hits / max(predicted, 1)),
                "recall": float(hits / max(n, 1)),
                "f1": float(2 * hits / max(n + predicted, 1)),
            }
            for hits, predicted, n in zip(right, answers, true, strict=True)
        ]
        if self.two_classes:
            # The odds of class 0 are those of class 1 with the other sign.
            for figures, histogram in zip(
                made, (self.histogram[::-1, ::-1], self.histogram), strict=True
            ):
                figures["average_precision"] = average_precision(histogram)
                figures["recall_at_precision"] = recall_at_precision(histogram, at_precision)
        return made

    def prior_metrics(self) -> dict[str, float]:
        """Return the metrics of a model that knows only the share of each class; {} before the
        first row."""
        if not self.rows:
            return {}
        share = self.confusion.sum(axis=1) / self.rows
        some = share[share > 0]
        brier = float((share * (1 - share)).sum())
        log_loss = -float((some * np.log(some)).sum()) + 0.0
        result = {"accuracy": float(share.max()), "log_loss": log_loss, "brier": brier}
        if self.two_classes:
            result |= {"brier": brier / 2, "auc": 0.5, "average_precision": float(share[1])}
        return result

    def baselines(self, names: list[str]) -> dict[str, dict[str, float]]:
        """Return name -> accuracy and rows."""
        return {
            name: {"accuracy": float(self.right[i] / self.n[i]), "rows": int(self.n[i])}
            for i, name in enumerate(names)
            if self.n[i]
        }

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value; of the histogram, only bins that are not empty."""
        at = np.flatnonzero(self.histogram)
        return {
            "confusion": self.confusion,
            "loss": self.loss,
            "brier": self.brier,
            "at": at,
            "filled": self.histogram.reshape(-1)[at],
            "n": self.n,
            "right": self.right,
            "outside": self.outside,
            "grows": self.grows,
        }

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """Return the sums from a `snapshot`."""
        empty = cls.empty(len(value["confusion"]), len(value["n"]))
        empty.histogram.reshape(-1)[value["at"]] = value["filled"]
        names = ("confusion", "loss", "brier", "n", "right", "outside", "grows")
        return dataclasses.replace(empty, **{name: value[name] for name in names})


def probabilities(scores: Floats) -> Floats:
    """Return scores as probabilities of every class, shape (n, k)."""
    return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores


def bins(class_probabilities: Floats) -> Ints:
    """Return each probability's bin of the histogram, shape (n,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(class_probabilities) - np.log1p(-class_probabilities)
    at = (np.clip(np.nan_to_num(odds, nan=0.0), -MAX_LOG_ODDS, MAX_LOG_ODDS) + MAX_LOG_ODDS) * (
        BINS / (2 * MAX_LOG_ODDS)
    )
    indexes: Ints = np.minimum(at.astype(np.int64), BINS - 1)
    return indexes


def edges() -> Floats:
    """Return the lower edge of each bin as a probability, shape (BINS,)."""
    odds = np.linspace(-MAX_LOG_ODDS, MAX_LOG_ODDS, BINS, endpoint=False)
    probabilities_out: Floats = 1 / (1 + np.exp(-odds))
    probabilities_out[0] = 0.0
    return probabilities_out


def auc(histogram: Ints) -> float:
    """Return the area under the ROC curve from the score histograms of both classes; scores in
    one bin count as ties."""
    negative, positive = histogram
    below = np.cumsum(negative) - negative
    pairs = float(negative.sum()) * float(positive.sum())
    wins = float((positive * (below + negative / 2)).sum())
    return wins / pairs if pairs else math.nan


def average_precision(histogram: Ints) -> float:
    """Return the area under the precision-recall curve, in steps (like scikit-learn); the share
    of class 1 for uninformative scores."""
    positives = int(histogram[1].sum())
    if not positives:
        return math.nan
    precision, _ = precision_recall(histogram)
    return float((histogram[1] * precision).sum() / positives)


def recall_at_precision(histogram: Ints, precision: float) -> float:
    """Return the largest recall that some threshold reaches with this precision or better; 0 if
    none does."""
    if not histogram[1].sum():
        return math.nan
    reached, recall = precision_recall(histogram)
    return float(recall[reached >= precision].max(initial=0.0))


def precision_recall(histogram: Ints) -> tuple[Floats, Floats]:
    """Return precision and recall of class 1 for a threshold at each bin, shape (BINS,); a
    precision of 0 if no row is above."""
    false, true = np.cumsum(histogram[:, ::-1], axis=1)[:, ::-1]
    return true / np.maximum(true + false, 1), true / max(1, int(histogram[1].sum()))


def calibration_error(histogram: Ints) -> float:
    """Return the expected calibration error (Naeini, Cooper & Hauskrecht, 2015): the distance of
    probabilities from observed shares, over groups of equally many rows."""
    groups = reliability(histogram)
    n = sum(group["rows"] for group in groups)
    gaps = sum(group["rows"] * abs(group["predicted"] - group["true"]) for group in groups)
    return gaps / n if n else math.nan


def reliability(histogram: Ints, groups: int = CALIBRATION_GROUPS) -> list[dict[str, Any]]:
    """Return groups of rows by probability, lowest first: rows, mean probability, observed
    share."""
    rows = histogram.sum(axis=0)
    total = int(rows.sum())
    if not total:
        return []
    bounds = np.append(edges(), 1.0)
    middle = (bounds[:-1] + bounds[1:]) / 2
    group = np.minimum((np.cumsum(rows) - rows) * groups // total, groups - 1)
    weights = (rows, rows * middle, histogram[1])
    sums = [np.bincount(group, weights=w, minlength=groups) for w in weights]
    return [
        {"rows": int(n), "predicted": p / n, "true": true / n}
        for n, p, true in zip(*(column.tolist() for column in sums), strict=True)
        if n
    ]


__all__ = [
    "ClassificationSums",
    "QuantileSums",
    "RegressionSums",
    "auc",
    "average_precision",
    "bins",
    "calibration_error",
    "deviances",
    "edges",
    "precision_recall",
    "probabilities",
    "recall_at_precision",
    "reliability",
]
