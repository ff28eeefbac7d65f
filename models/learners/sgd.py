"""Stochastic gradient descent row by row, compiled.

Plain loops over rows and features: that is what numba turns into machine code. The GIL is released.
Arguments have the meaning and the order that `models.learners.linear.Numbers` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from engine.types.arrays import Floats

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
EACH: Integers = np.empty(0, np.int64)
"""The lessons where every row is one."""
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile the function at its first call, and cache it on disk."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))


@compiled
def invert(variance: Floats, scaled: Flags, inverse: Floats) -> None:
    """Return 1 / deviation of each feature: 0 for one that never varied, 1 for one that is not
    scaled."""
    for j in range(len(variance)):
        spread = variance[j] if scaled[j] else 1.0
        inverse[j] = 1 / math.sqrt(spread) if spread > 0 else 0.0


@compiled
def find(categories: Integers, i: int, bounds: Integers, slots: Integers) -> None:
    """Return the index of the weight of each of row i's codes; a code outside its table is code
    0."""
    for k in range(len(slots)):
        code = categories[i, k]
        known = 0 <= code < bounds[k + 1] - bounds[k]
        slots[k] = bounds[k] + code if known else bounds[k]


@compiled
def score_of(
    numeric: NDArray[np.float32],
    i: int,
    slots: Integers,
    mean: Floats,
    inverse: Floats,
    weights: Floats,
    intercept: float,
) -> tuple[float, float]:
    """Return the linear score of row i, and the sum of its squared scaled numbers. A feature
    that is not scaled has mean 0 and inverse 1."""
    score, size = 0.0, 0.0
    for j in range(len(mean)):
        z = (numeric[i, j] - mean[j]) * inverse[j]
        score += weights[j] * z
        size += z * z
    for k in range(len(slots)):
        score += weights[slots[k]]
    return score + intercept, size


@compiled
def welford(
    numeric: NDArray[np.float32],
    i: int,
    count: float,
    scaled: Flags,
    mean: Floats,
    variance: Floats,
    inverse: Floats,
) -> None:
    """Update mean, population variance and 1 / deviation of the scaled features with row i
    (Welford, 1962)."""
    share = 1 / count
    for j in range(len(mean)):
        if not scaled[j]:
            continue
        gap = numeric[i, j] - mean[j]
        mean[j] += gap * share
        variance[j] += (gap * (numeric[i, j] - mean[j]) - variance[j]) * share
        inverse[j] = 1 / math.sqrt(variance[j]) if variance[j] > 0 else 0.0


@compiled
def link(score: float, logistic: bool) -> float:
    """Return the score, or its probability; River's sigmoid is exactly 0 and 1 beyond 30."""
    if not logistic:
        return score
    if score < -30:
        return 0.0
    return 1.0 if score > 30 else 1 / (1 + math.exp(-score))


@compiled
def loss_of(score: float, predicted: float, target: float, logistic: bool) -> float:
    """Return squared or log loss; `predicted` is the score's link."""
    if not logistic:
        return (score - target) ** 2
    if abs(score) > 30:
        return max(0.0, -score if target > 0 else score)
    return -math.log(predicted if target > 0 else 1 - predicted)


@compiled
def log_loss_gradient(score: float, sign: float) -> float:
    """Return log loss's derivative by the score, with River's shortcuts far from 0."""
    margin = score * sign
    if margin > 18:
        return -sign * math.exp(-margin)
    return -sign if margin < -18 else -sign / (math.exp(margin) + 1)


@compiled
def gradient_of(score: float, target: float, logistic: bool) -> float:
    """Return the loss's derivative by the score; for a target between classes, of both by its
    share."""
    if not logistic:
        return 2 * (score - target)
    if 0 < target < 1:
        return target * log_loss_gradient(score, 1.0) + (1 - target) * log_loss_gradient(
            score, -1.0
        )
    return log_loss_gradient(score, 1.0 if target > 0 else -1.0)


@compiled
def limited(g: float, error: float, moves: float) -> float:
    """Return the gradient of a squared loss, limited so that the step does not go beyond the
    row's target if it would leave the row with a larger error: as for a number hundreds of
    deviations away, in a column that has hardly varied.

    Args:
        error: score - target.
        moves: how far a gradient of 1 moves the row's score.
    """
    if moves <= 1:
        return g
    most = abs(error) / moves
    return min(max(g, -most), most)


@compiled
def penalize(j: int | np.signedinteger, most: float, weights: Floats, penalties: Floats) -> None:
    """Move weight j towards 0 by its pending L1 penalty (Tsuruoka et al., 2009)."""
    before = weights[j]
    if before > 0:
        weights[j] = max(0.0, before - (most + penalties[j]))
    elif before < 0:
        weights[j] = min(0.0, before + (most - penalties[j]))
    penalties[j] += weights[j] - before


@compiled
def learn_rows(
    numeric: NDArray[np.float32],
    categories: Integers,
    target: Floats,
    bounds: Integers,
    logistic: bool,
    scaled: Flags,
    rates: tuple[float, float, float, float, float],
    scalars: Floats,
    mean: Floats,
    variance: Floats,
    weights: Floats,
    penalties: Floats,
    scores: Floats,
    augmented: tuple[NDArray[np.float32], Integers, Floats],
    is_augmented: bool,
    lessons: Integers,
) -> float:
    """Predict each row, then learn it; write the numbers and `scores`.

    Args:
        augmented: numeric, categories and target to learn in place of the rows, where they are
            `is_augmented`; mean and variance are those of the rows all the same.
        lessons: the number of each row in `augmented`, -1 of a row that is only predicted; `EACH`
            where every row is learned.
        scaled: the features that are scaled here, shape (d,).
        rates: lr, intercept_lr, l1, l2, clip_gradient.

    Returns:
        The sum of the rows' losses before they were learned; not finite where any of the numbers is
        not.
    """
    lr, intercept_lr, l1, l2, clip = rates
    count, intercept, most, total = scalars[0], scalars[1], scalars[2], 0.0
    inverse, slots = np.empty(len(mean)), np.empty(len(bounds) - 1, np.int64)
    scales = scaled.any()
    invert(variance, scaled, inverse)
    for i in range(len(target)):
        find(categories, i, bounds, slots)
        score, size = score_of(numeric, i, slots, mean, inverse, weights, intercept)
        scores[i] = link(score, logistic)
        lesson = lessons[i] if len(lessons) else i
        if lesson < 0:
            continue
        total += loss_of(score, scores[i], target[i], logistic)
        count += 1
        if scales:
            welford(numeric, i, count, scaled, mean, variance, inverse)
        if is_augmented:
            find(augmented[1], lesson, bounds, slots)
        if scales or is_augmented:
            score, size = score_of(augmented[0], lesson, slots, mean, inverse, weights, intercept)
        g = min(max(gradient_of(score, augmented[2][lesson], logistic), -clip), clip)
        if not logistic:  # whose gradient ends with the error
            g = limited(g, score - augmented[2][lesson], intercept_lr + lr * (len(slots) + size))
        intercept -= intercept_lr * g
        for j in range(len(mean)):
            z = (augmented[0][lesson, j] - mean[j]) * inverse[j]
            weights[j] -= lr * (g * z + l2 * weights[j])
        for slot in slots:
            weights[slot] -= lr * (g + l2 * weights[slot])
        if l1 > 0:
            most += l1 * lr
            for j in range(len(mean)):
                penalize(j, most, weights, penalties)
            for slot in slots:
                penalize(slot, most, weights, penalties)
    scalars[0], scalars[1], scalars[2] = count, intercept, most
    # 0 times a number that is not finite is nan.
    check: float = 0 * (weights.sum() + intercept + mean.sum() + variance.sum())
    return total + check


@compiled
def predict_rows(
    numeric: NDArray[np.float32],
    categories: Integers,
    bounds: Integers,
    logistic: bool,
    scaled: Flags,
    scalars: Floats,
    mean: Floats,
    variance: Floats,
    weights: Floats,
    scores: Floats,
) -> None:
    """Write the rows' scores."""
    inverse, slots = np.empty(len(mean)), np.empty(len(bounds) - 1, np.int64)
    invert(variance, scaled, inverse)
    for i in range(len(scores)):
        find(categories, i, bounds, slots)
        score, _ = score_of(numeric, i, slots, mean, inverse, weights, scalars[1])
        scores[i] = link(score, logistic)


__all__ = ["EACH", "learn_rows", "predict_rows"]
