"""Stochastic gradient descent a row at a time, compiled.

Plain loops over rows and features: that is what numba turns into machine code. The GIL is released.
Arguments have the meaning and the order that `models.linear.Numbers` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """The function as machine code, compiled at its first call; nothing is cached on disk."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


@compiled
def scale(
    row: NDArray[np.float32], mean: Floats, variance: Floats, standardize: bool, out: Floats
) -> None:
    """The row as the weights see it; 0 for a feature that never varied."""
    for j in range(len(mean)):
        if not standardize:
            out[j] = row[j]
        elif variance[j] > 0:
            out[j] = (row[j] - mean[j]) / np.sqrt(variance[j])
        else:
            out[j] = 0.0


@compiled
def find(codes: Integers, bounds: Integers, slots: Integers) -> None:
    """Where the weight of each category's code lies; a code outside its table is code 0."""
    for k in range(len(slots)):
        known = 0 <= codes[k] < bounds[k + 1] - bounds[k]
        slots[k] = bounds[k] + codes[k] if known else bounds[k]


@compiled
def score_of(z: Floats, slots: Integers, weights: Floats, intercept: float) -> float:
    """The linear score."""
    score = 0.0
    for j in range(len(z)):
        score += weights[j] * z[j]
    for k in range(len(slots)):
        score += weights[slots[k]]
    return score + intercept


@compiled
def link(score: float, logistic: bool) -> float:
    """The score, or its probability; River's sigmoid is exactly 0 and 1 beyond 30."""
    if not logistic:
        return score
    if score < -30:
        return 0.0
    return 1.0 if score > 30 else 1 / (1 + math.exp(-score))


@compiled
def welford(row: NDArray[np.float32], count: float, mean: Floats, variance: Floats) -> None:
    """Mean and population variance with one more row (Welford, 1962)."""
    for j in range(len(mean)):
        old = mean[j]
        mean[j] += (row[j] - old) / count
        variance[j] += ((row[j] - old) * (row[j] - mean[j]) - variance[j]) / count


@compiled
def loss_of(score: float, target: float, logistic: bool) -> float:
    """Squared or log loss."""
    if not logistic:
        return (score - target) ** 2
    margin = score if target > 0 else -score
    if margin > 0:
        return math.log1p(math.exp(-margin))
    return math.log1p(math.exp(margin)) - margin


@compiled
def gradient_of(score: float, target: float, logistic: bool) -> float:
    """The loss's derivative by the score, with River's shortcuts far from 0."""
    if not logistic:
        return 2 * (score - target)
    sign = 1.0 if target > 0 else -1.0
    margin = score * sign
    if margin > 18:
        return -sign * math.exp(-margin)
    return -sign if margin < -18 else -sign / (math.exp(margin) + 1)


@compiled
def penalize(j: int | np.signedinteger, most: float, weights: Floats, penalties: Floats) -> None:
    """Move weight j towards 0 by the L1 penalty it has not had yet (Tsuruoka et al., 2009)."""
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
    standardize: bool,
    rates: tuple[float, float, float, float, float],
    scalars: Floats,
    mean: Floats,
    variance: Floats,
    weights: Floats,
    penalties: Floats,
    scores: Floats,
) -> float:
    """Predict each row, then learn it; writes the numbers and `scores`.

    Args:
        rates: lr, intercept_lr, l1, l2, clip_gradient.

    Returns:
        The sum of the rows' losses before they were learned.
    """
    lr, intercept_lr, l1, l2, clip = rates
    count, intercept, most, total = scalars[0], scalars[1], scalars[2], 0.0
    z, slots = np.empty(len(mean)), np.empty(len(bounds) - 1, np.int64)
    for i in range(len(target)):
        find(categories[i], bounds, slots)
        scale(numeric[i], mean, variance, standardize, z)
        score = score_of(z, slots, weights, intercept)
        scores[i] = link(score, logistic)
        total += loss_of(score, target[i], logistic)
        count += 1
        if standardize:
            welford(numeric[i], count, mean, variance)
            scale(numeric[i], mean, variance, standardize, z)
            score = score_of(z, slots, weights, intercept)
        g = min(max(gradient_of(score, target[i], logistic), -clip), clip)
        intercept -= intercept_lr * g
        for j in range(len(z)):
            weights[j] -= lr * (g * z[j] + l2 * weights[j])
        for slot in slots:
            weights[slot] -= lr * (g + l2 * weights[slot])
        if l1 > 0:
            most += l1 * lr
            for j in range(len(z)):
                penalize(j, most, weights, penalties)
            for slot in slots:
                penalize(slot, most, weights, penalties)
    scalars[0], scalars[1], scalars[2] = count, intercept, most
    return total


@compiled
def predict_rows(
    numeric: NDArray[np.float32],
    categories: Integers,
    bounds: Integers,
    logistic: bool,
    standardize: bool,
    scalars: Floats,
    mean: Floats,
    variance: Floats,
    weights: Floats,
    scores: Floats,
) -> None:
    """Write the rows' scores."""
    z, slots = np.empty(len(mean)), np.empty(len(bounds) - 1, np.int64)
    for i in range(len(scores)):
        find(categories[i], bounds, slots)
        scale(numeric[i], mean, variance, standardize, z)
        scores[i] = link(score_of(z, slots, weights, scalars[1]), logistic)


__all__ = ["Floats", "learn_rows", "predict_rows"]
