"""Prototypes row by row, compiled: each row is scored, then it moves the mean of its class.

Plain loops over rows, classes and numbers: that is what numba turns into machine code. The GIL is
released. Arguments have the meaning and the order that `models.learners.prototypes.table` gives
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from engine.types.arrays import Bools, Floats, Ints

Rows = NDArray[np.float32]
F = TypeVar("F", bound=Callable[..., Any])

ROWS, SPREAD, LOG_SHARPNESS, TEMPERATURE = 0, 1, 2, 3
"""What the calibration holds: rows that it has learned, how far rows are from the mean of their
class, the logarithm of how sharply scores fall with the distance, and a temperature in its place, 0
without one."""
FIRST_RATE, FIRST_ROWS, LAST_RATE = 0.5, 10.0, 0.005
"""The step size of the sharpness: large for the first rows, then a small constant one."""
MOST_LOG_SHARPNESS = 7.0


def compiled(function: F) -> F:
    """Compile the function at its first call, and cache it on disk. Sums may be taken in any
    order, which lets them run in vector registers."""
    decorate = numba.njit(
        nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"}
    )
    return cast(F, decorate(function))


@compiled
def invert(variance: Floats, scaled: Bools, weights: Floats) -> None:
    """Return 1 / variance of each number: 0 for one that never varied, 1 for one that is not
    scaled."""
    for j in range(len(variance)):
        spread = variance[j] if scaled[j] else 1.0
        weights[j] = 1 / spread if spread > 0 else 0.0


@compiled
def learn_scale(
    vectors: Rows, i: int, count: float, scaled: Bools, mean: Floats, variance: Floats
) -> None:
    """Take row i into mean and population variance of the scaled numbers (Welford's method).

    Args:
        count: rows, this one included.
    """
    for j in range(len(mean)):
        if scaled[j]:
            gap = vectors[i, j] - mean[j]
            mean[j] += gap / count
            variance[j] += (gap * (vectors[i, j] - mean[j]) - variance[j]) / count


@compiled
def squared(vectors: Rows, i: int, point: Floats, weights: Floats) -> float:
    """Return the squared Euclidean distance of row i, each number weighted."""
    total = 0.0
    for j in range(len(point)):
        gap = vectors[i, j] - point[j]
        total += weights[j] * gap * gap
    return total


@compiled
def angular(vectors: Rows, i: int, point: Floats, mean: Floats, weights: Floats) -> float:
    """Return 1 minus the cosine between row i and the point, both seen from the mean."""
    both, own, other = 0.0, 0.0, 0.0
    for j in range(len(point)):
        x, p = vectors[i, j] - mean[j], point[j] - mean[j]
        both += weights[j] * x * p
        own += weights[j] * x * x
        other += weights[j] * p * p
    length = math.sqrt(own) * math.sqrt(other)
    return 1 - both / length if length > 0 else 1.0


@compiled
def sharpness_of(calibration: Floats) -> float:
    """Return what a distance is multiplied with."""
    if calibration[TEMPERATURE] > 0:
        return float(1 / calibration[TEMPERATURE])
    scale = calibration[SPREAD]
    return math.exp(calibration[LOG_SHARPNESS]) / (scale if scale > 0 else 1.0)


@compiled
def score(
    vectors: Rows,
    i: int,
    cosine: bool,
    counts: Ints,
    prototypes: Floats,
    mean: Floats,
    weights: Floats,
    calibration: Floats,
    distances: Floats,
    scores: Floats,
) -> int:
    """Write distances and probabilities of row i; return the number of classes with a prototype.

    A mean of n rows is on average a spread / n further away than the mean of all rows of its class
    would be. That is taken off, or a class of one example would lose against those of many.

    Probabilities are the softmax over the negative distances times the sharpness. A class without
    a row has none; where no class has one, all have the same.
    """
    alive, nearest, sharpness = 0, np.inf, sharpness_of(calibration)
    for c in range(len(counts)):
        if counts[c] > 0:
            if cosine:
                distances[c] = angular(vectors, i, prototypes[c], mean, weights)
            else:
                distances[c] = squared(vectors, i, prototypes[c], weights)
            distances[c] -= calibration[SPREAD] / counts[c]
            nearest = min(nearest, distances[c])
            alive += 1
    total = 0.0
    for c in range(len(counts)):
        scores[i, c] = 0.0
        if counts[c] > 0:
            scores[i, c] = math.exp(-sharpness * (distances[c] - nearest))
        elif alive == 0:
            scores[i, c] = 1.0
        total += scores[i, c]
    for c in range(len(counts)):
        scores[i, c] /= total
    return alive


@compiled
def calibrate(
    label: int, distances: Floats, counts: Ints, row: Floats, calibration: Floats
) -> None:
    """Move the sharpness down the gradient of the row's log loss, and learn the spread from its
    distance.

    Args:
        row: its probabilities.
    """
    expected = 0.0
    for c in range(len(counts)):
        if counts[c] > 0:
            expected += row[c] * distances[c]
    gradient = sharpness_of(calibration) * (distances[label] - expected)
    rate = FIRST_RATE / (calibration[ROWS] + FIRST_ROWS) + LAST_RATE
    moved = calibration[LOG_SHARPNESS] - rate * max(-1.0, min(1.0, gradient))
    calibration[LOG_SHARPNESS] = max(-MOST_LOG_SHARPNESS, min(MOST_LOG_SHARPNESS, moved))
    calibration[ROWS] += 1
    share = 1.0 / counts[label]
    spread = (distances[label] + calibration[SPREAD] * share) / (1 + share)
    calibration[SPREAD] += (spread - calibration[SPREAD]) / calibration[ROWS]


@compiled
def nearest_example(rows: Rows, i: int, counts: Ints, examples: Any, weights: Floats) -> int:
    """Return the class of the kept example that is nearest to row i, -1 where there is none."""
    best, nearest = -1, np.inf
    kept = examples.shape[1]
    for c in range(len(counts)):
        for e in range(min(counts[c], kept)):
            total = 0.0
            for j in range(rows.shape[1]):
                gap = rows[i, j] - examples[c, e, j]
                total += weights[j] * gap * gap
            if total < nearest:
                best, nearest = c, total
    return best


@compiled
def learn_rows(
    vectors: Rows,
    rows: Rows,
    labels: Ints,
    cosine: bool,
    scaled: Bools,
    raw_scaled: Bools,
    counts: Ints,
    prototypes: Floats,
    examples: Any,
    mean: Floats,
    variance: Floats,
    raw_mean: Floats,
    raw_variance: Floats,
    seen: Ints,
    calibration: Floats,
    scores: Floats,
    guesses: Ints,
) -> float:
    """Score and learn rows one after the other; return the sum of the log losses of those whose
    class had a prototype.

    Args:
        vectors: embedded rows, shape (n, width); rows: raw ones, (n, raw width).
        labels: classes, (n,); -1 for a row that is only scored.
        scores, guesses: of each row before it is learned, (n, classes), and the class of the
            nearest raw example, (n,); written.
    """
    weights, raw_weights = np.empty(len(mean)), np.empty(len(raw_mean))
    distances = np.zeros(len(counts))
    loss = 0.0
    for i in range(len(labels)):
        label = labels[i]
        invert(variance, scaled, weights)
        invert(raw_variance, raw_scaled, raw_weights)
        alive = score(
            vectors, i, cosine, counts, prototypes, mean, weights, calibration, distances, scores
        )
        guesses[i] = nearest_example(rows, i, counts, examples, raw_weights)
        if label < 0:
            continue
        if counts[label] > 0:
            loss -= math.log(max(scores[i, label], 1e-300))
            if alive > 1:
                calibrate(label, distances, counts, scores[i], calibration)
        if examples.shape[1] > 0:
            place = counts[label] % examples.shape[1]
            for j in range(rows.shape[1]):  # slices take seconds to compile
                examples[label, place, j] = rows[i, j]
        counts[label] += 1
        for j in range(len(mean)):
            prototypes[label, j] += (vectors[i, j] - prototypes[label, j]) / counts[label]
        seen[0] += 1
        learn_scale(vectors, i, seen[0], scaled, mean, variance)
        learn_scale(rows, i, seen[0], raw_scaled, raw_mean, raw_variance)
    return loss


@compiled
def predict_rows(
    vectors: Rows,
    cosine: bool,
    scaled: Bools,
    counts: Ints,
    prototypes: Floats,
    mean: Floats,
    variance: Floats,
    calibration: Floats,
    scores: Floats,
) -> None:
    """Write the probabilities of rows, shape (n, classes)."""
    weights, distances = np.empty(len(mean)), np.zeros(len(counts))
    invert(variance, scaled, weights)
    for i in range(len(vectors)):
        score(vectors, i, cosine, counts, prototypes, mean, weights, calibration, distances, scores)


__all__ = ["learn_rows", "predict_rows"]
