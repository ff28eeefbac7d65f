"""Quality of predictions as sums: small immutable tables that rows add to, and the metrics they
give.

All sums are float64, added in the order of the stream, so the same batches always give the same
bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 10_000
"""Of the score histogram; the area under the ROC curve from it is off by less than 1 / BINS where
scores spread."""
TINY = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of a model and its baselines.

    Attributes:
        n, absolute, square: shape (p,), model first; a baseline counts only the rows where it is
            there.
        same: the model's absolute error over the rows of each baseline, shape (p,).
        count, mean, m2: of the target (Chan, Golub & LeVeque, 1979), for R2.
    """

    n: Ints
    absolute: Floats
    square: Floats
    same: Floats
    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def empty(cls, p: int) -> Self:
        """Of p predictors, the model among them."""
        return cls(np.zeros(p, np.int64), np.zeros(p), np.zeros(p), np.zeros(p))

    def add(self, target: Floats, predictions: Floats) -> Self:
        """Rows: target (n,), predictions (n, p), NaN where a baseline has none."""
        if not len(target):
            return self
        error = predictions - target[:, None]
        there = np.isfinite(error)
        error = np.where(there, error, 0.0)
        size = np.abs(error)
        n, mean = len(target), float(target.mean())
        m2 = float(((target - mean) ** 2).sum())
        total, delta = self.count + n, mean - self.mean
        return type(self)(
            self.n + there.sum(axis=0),
            self.absolute + size.sum(axis=0),
            self.square + (error**2).sum(axis=0),
            self.same + (size[:, :1] * there).sum(axis=0),
            total,
            self.mean + delta * n / total,
            self.m2 + m2 + delta**2 * self.count * n / total,
        )

    @property
    def rows(self) -> int:
        """That were added."""
        return self.count

    def metrics(self) -> dict[str, float]:
        """MAE, MSE, RMSE and R2 of the model; {} before the first row."""
        if not self.n[0]:
            return {}
        mse = float(self.square[0] / self.n[0])
        r2 = 1 - float(self.square[0]) / self.m2 if self.m2 > 0 else math.nan
        mae = float(self.absolute[0] / self.n[0])
        return {"mae": mae, "mse": mse, "rmse": math.sqrt(mse), "r2": r2}

    def baselines(self, names: list[str]) -> dict[str, dict[str, float]]:
        """Name -> MAE, RMSE, rows, and the model's MAE on those rows."""
        return {
            name: {
                "mae": float(self.absolute[i] / self.n[i]),
                "rmse": math.sqrt(float(self.square[i] / self.n[i])),
                "rows": int(self.n[i]),
                "model_mae": float(self.same[i] / self.n[i]),
            }
            for i, name in enumerate(names, 1)
            if self.n[i]
        }

    def snapshot(self) -> dict[str, Any]:
        """As a plain value."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """From what `snapshot` gave."""
        return cls(**value)


@dataclass(frozen=True, slots=True)
class Hits:
    """Right and wrong classes of a model and its baselines.

    Attributes:
        confusion: shape (k, k): true class, predicted class.
        loss: summed log loss.
        histogram: binary only, shape (2, BINS): true class, score bin.
        n, right: of the baselines, shape (p,).
    """

    confusion: Ints
    loss: float
    histogram: Ints
    n: Ints
    right: Ints

    @classmethod
    def empty(cls, k: int, p: int) -> Self:
        """Of k classes and p baselines."""
        bins = BINS if k == 2 else 0
        nothing = np.zeros(p, np.int64)
        return cls(np.zeros((k, k), np.int64), 0.0, np.zeros((2, bins), np.int64), nothing, nothing)

    def add(self, target: Ints, scores: Floats, baselines: Ints) -> Self:
        """Rows: class numbers (n,), scores (n,) or (n, k), baselines' classes (n, p), -1 where
        there is none."""
        if not len(target):
            return self
        k = len(self.confusion)
        chances = probabilities(scores)
        predicted = classes(scores)
        confusion = np.bincount(target * k + predicted, minlength=k * k).reshape(k, k)
        chance = np.clip(chances[np.arange(len(target)), target], TINY, 1 - TINY)
        histogram = self.histogram
        if k == 2:
            at = np.minimum((chances[:, 1] * BINS).astype(np.int64), BINS - 1)
            histogram = histogram + np.bincount(target * BINS + at, minlength=2 * BINS).reshape(
                2, BINS
            )
        return type(self)(
            self.confusion + confusion,
            self.loss - float(np.log(chance).sum()),
            histogram,
            self.n + (baselines >= 0).sum(axis=0),
            self.right + (baselines == target[:, None]).sum(axis=0),
        )

    @property
    def rows(self) -> int:
        """That were added."""
        return int(self.confusion.sum())

    def metrics(self) -> dict[str, Any]:
        """Accuracy, precision, recall, F1 (of class 1, or macro), log loss, AUC (binary), confusion
        matrix."""
        n = self.rows
        if not n:
            return {}
        right, true, said = (
            np.diag(self.confusion),
            self.confusion.sum(axis=1),
            self.confusion.sum(axis=0),
        )
        precision = right / np.maximum(said, 1)
        recall = right / np.maximum(true, 1)
        both = precision + recall
        f1 = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
        # Macro over the classes that occurred, as scikit-learn does.
        part: Any = 1 if len(true) == 2 else np.flatnonzero(true + said)
        made: dict[str, Any] = {
            "accuracy": float(right.sum() / n),
            "precision": float(np.mean(precision[part])),
            "recall": float(np.mean(recall[part])),
            "f1": float(np.mean(f1[part])),
            "log_loss": self.loss / n,
        }
        if len(true) == 2:
            made["auc"] = auc(self.histogram)
        return {**made, "confusion": self.confusion.tolist()}

    def baselines(self, names: list[str]) -> dict[str, dict[str, float]]:
        """Name -> accuracy and rows."""
        return {
            name: {"accuracy": float(self.right[i] / self.n[i]), "rows": int(self.n[i])}
            for i, name in enumerate(names)
            if self.n[i]
        }

    def snapshot(self) -> dict[str, Any]:
        """As a plain value; of the histogram, the bins that are not empty."""
        at = np.flatnonzero(self.histogram)
        return {
            "confusion": self.confusion,
            "loss": self.loss,
            "at": at,
            "filled": self.histogram.reshape(-1)[at],
            "n": self.n,
            "right": self.right,
        }

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Self:
        """From what `snapshot` gave."""
        empty = cls.empty(len(value["confusion"]), len(value["n"]))
        empty.histogram.reshape(-1)[value["at"]] = value["filled"]
        return cls(value["confusion"], value["loss"], empty.histogram, value["n"], value["right"])


def classes(scores: Floats) -> Ints:
    """Predicted class numbers, shape (n,)."""
    return (scores > 0.5).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)


def probabilities(scores: Floats) -> Floats:
    """Scores as probabilities of every class, shape (n, k)."""
    return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores


def auc(histogram: Ints) -> float:
    """Area under the ROC curve from the score histograms of both classes; scores in one bin count
    as ties."""
    negative, positive = histogram
    below = np.cumsum(negative) - negative
    pairs = float(negative.sum()) * float(positive.sum())
    wins = float((positive * (below + negative / 2)).sum())
    return wins / pairs if pairs else math.nan


__all__ = ["Errors", "Hits", "auc", "classes", "probabilities"]
