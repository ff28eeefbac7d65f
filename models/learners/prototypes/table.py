"""What a learner of prototypes knows: a mean, a count and the newest examples of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types.arrays import Bools, Floats, Ints
from models.learners.prototypes.kernels import (
    LOG_SHARPNESS,
    SPREAD,
    TEMPERATURE,
    Rows,
    learn_rows,
    predict_rows,
    sharpness_of,
)

FIRST_LOG_SHARPNESS = math.log(4.0)
"""The sharpness before it has learned: a spread further away is a factor of e to the 4."""

Line = tuple[Floats, Floats]
"""a and b of ``a * x + b``, for each number of a row."""


class PrototypeTable:
    """Prototypes of classes, and the scale of what they are the means of.

    Args:
        scaled, raw_scaled: which numbers of an embedded and of a raw row are divided by their
            deviation, shape (width,) each.
        cosine: whether the distance is 1 minus the cosine, and not the squared Euclidean one.
        temperature: what distances are divided by; learned if None.
        kept: the newest examples of each class that are kept.

    Attributes:
        counts: rows learned of each class, shape (classes,).
        prototypes: their means, shape (classes, width).
        examples: raw rows, shape (classes, kept, raw width).
    """

    def __init__(
        self,
        scaled: Bools,
        raw_scaled: Bools,
        *,
        cosine: bool,
        temperature: float | None,
        kept: int,
    ) -> None:
        self.scaled = scaled
        self.cosine = cosine
        self._raw_scaled = raw_scaled
        self.counts: Ints = np.zeros(0, np.int64)
        self.prototypes: Floats = np.zeros((0, len(scaled)))
        self.examples: Rows = np.zeros((0, kept, len(raw_scaled)), np.float32)
        self.mean, self.variance = np.zeros(len(scaled)), np.zeros(len(scaled))
        self._raw_mean, self._raw_variance = np.zeros(len(raw_scaled)), np.zeros(len(raw_scaled))
        self._seen = np.zeros(1, np.int64)
        self._calibration = np.zeros(4)
        self._calibration[LOG_SHARPNESS] = FIRST_LOG_SHARPNESS
        self._calibration[TEMPERATURE] = temperature or 0.0

    @property
    def kept(self) -> int:
        """The newest examples of each class that are kept."""
        return int(self.examples.shape[1])

    @property
    def sharpness(self) -> float:
        """What distances are multiplied with before the softmax."""
        return float(sharpness_of(self._calibration))

    @property
    def corrections(self) -> Floats:
        """What is taken off the distances to prototypes of few rows, shape (classes,)."""
        spread: Floats = self._calibration[SPREAD] / np.maximum(self.counts, 1)
        return spread

    @property
    def weights(self) -> Floats:
        """What the square of each number's difference counts, shape (width,)."""
        spread = np.where(self.scaled, self.variance, 1.0)
        return np.divide(1.0, spread, out=np.zeros(len(spread)), where=spread > 0)

    @property
    def nbytes(self) -> dict[str, int]:
        """Component -> bytes."""
        every = sum(array.nbytes for array in self._arrays.values())
        weights, examples = self.prototypes.nbytes, self.examples.nbytes
        return {"weights": weights, "optimizer": every - weights - examples, "replay": examples}

    def set_classes(self, sources: Sequence[int]) -> None:
        """Continue with classes of other numbers; see `engine.types.Learner.set_classes`."""
        at = np.asarray(sources, np.int64)
        self.counts = _picked(self.counts, at)
        self.prototypes = _picked(self.prototypes, at)
        self.examples = _picked(self.examples, at)

    def move(self, vectors: Line | None, rows: Line) -> None:
        """Bring what is kept into another scale: each number x becomes ``a * x + b``.

        Args:
            vectors: a and b of embedded rows, (width,) each; None if those stay.
            rows: of raw ones.
        """
        if vectors is not None:
            a, b = vectors
            there = self.counts > 0
            self.prototypes[there] = self.prototypes[there] * a + b
        a, b = rows
        moved = (a != 1) | (b != 0)
        self.examples[..., moved] = self.examples[..., moved] * a[moved] + b[moved]

    def learn(self, vectors: Rows, rows: Rows, labels: Ints) -> tuple[Floats, Ints, float, int]:
        """Score each row, then learn it.

        Args:
            vectors: embedded rows, shape (n, width).
            rows: raw ones, shape (n, raw width).
            labels: classes, shape (n,); -1 for rows that are only scored.

        Returns: probabilities, (n, classes); the class of the nearest raw example of each row, -1
            before there is one; and the sum of the log losses of rows whose class had a prototype,
            and their number.
        """
        scores, guesses = np.empty((len(labels), len(self.counts))), np.empty(len(labels), np.int64)
        before = self.counts.copy()
        loss = learn_rows(
            vectors, rows, labels, self.cosine, self.scaled, self._raw_scaled, self.counts,
            self.prototypes, self.examples, self.mean, self.variance, self._raw_mean,
            self._raw_variance, self._seen, self._calibration, scores, guesses,
        )  # fmt: skip
        first = ((before == 0) & (self.counts > 0)).sum()
        return scores, guesses, loss, int((labels >= 0).sum() - first)

    def predict(self, vectors: Rows) -> Floats:
        """Return probabilities, shape (n, classes)."""
        scores = np.empty((len(vectors), len(self.counts)))
        predict_rows(
            vectors, self.cosine, self.scaled, self.counts, self.prototypes, self.mean,
            self.variance, self._calibration, scores,
        )  # fmt: skip
        return scores

    def snapshot(self) -> dict[str, Any]:
        """Return everything that learning changes, copied."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore a `snapshot`."""
        self.counts, self.prototypes, self.examples = (
            np.array(value[name]) for name in ("counts", "prototypes", "examples")
        )
        for name in self._arrays:
            self._arrays[name][...] = value[name]

    @property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "counts": self.counts,
            "prototypes": self.prototypes,
            "examples": self.examples,
            "mean": self.mean,
            "variance": self.variance,
            "raw_mean": self._raw_mean,
            "raw_variance": self._raw_variance,
            "seen": self._seen,
            "calibration": self._calibration,
        }


def _picked(values: NDArray[Any], at: Ints) -> NDArray[Any]:
    """Return rows of an array, zeros where the number is -1."""
    picked = np.zeros((len(at), *values.shape[1:]), values.dtype)
    there = at >= 0
    picked[there] = values[at[there]]
    return picked


__all__ = ["PrototypeTable"]
