"""Probabilities from raw scores, equal to the bit wherever a row stands among others.

torch's sigmoid of float64 computes the rows behind the last full vector in another way, so that
their last bit depended on how many rows are scored together.
"""

from __future__ import annotations

import numpy as np

from engine.types.arrays import Floats


def sigmoid(raw: Floats) -> Floats:
    """Return the probability of the second of two classes, shape (n,) as the raw scores."""
    positive = raw >= 0
    small = np.exp(np.where(positive, -raw, raw))
    shares: Floats = np.where(positive, 1.0, small) / (1 + small)
    return shares


def softmax(raw: Floats) -> Floats:
    """Return the probability of each class, shape (n, classes) as the raw scores."""
    powers = np.exp(raw - raw.max(axis=1, keepdims=True, initial=-np.inf))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


__all__ = ["sigmoid", "softmax"]
