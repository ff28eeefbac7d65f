"""Decides when a batch must be closed so that its oldest record is done in time."""

from __future__ import annotations

import threading

import numpy as np

SIZES = 32
"""Classes of batch size: 1, 2, 3-4, 5-8, ... rows."""
WEIGHT = 0.05
"""The weight of the newest batch in the average of its size; half of the average is the newest
13."""
DEVIATIONS = 2.33
"""Standard deviations above the mean that cover 99 of 100 batches, if their times are normal."""


class Deadline:
    """Learns how long batches of each size take from closing to completion, and says when one
    must be closed.

    A size that was never seen takes as long as a smaller one, times their ratio: an upper bound,
    as part of the time does not depend on the size. Before anything is known a batch goes at once.
    When the objective is out of reach already (the model is behind), a batch takes what is there
    and goes: so batches grow with the backlog, and the model catches up.

    Any thread may call it.
    """

    def __init__(self, objective: float) -> None:
        """
        Args:
            objective: seconds from the arrival of a record to the end of its batch.
        """
        self.objective = objective
        self._lock = threading.Lock()
        self._mean = np.full(SIZES, np.nan)
        self._variance = np.zeros(SIZES)
        self._seen = np.zeros(SIZES, np.int64)

    def observe(self, rows: int, seconds: float) -> None:
        """Note that a batch of `rows` rows was done `seconds` after it was closed."""
        if rows < 1:
            return
        at = _class(rows)
        with self._lock:
            if np.isnan(self._mean[at]):
                self._mean[at], self._variance[at] = seconds, (0.5 * seconds) ** 2
                return
            # Exponentially weighted mean and variance (Finch 2009); the first count alike.
            self._seen[at] += 1
            weight = max(WEIGHT, 1 / (1 + self._seen[at]))
            off = seconds - self._mean[at]
            self._mean[at] += weight * off
            self._variance[at] = (1 - weight) * (self._variance[at] + weight * off * off)

    def seconds(self, rows: int) -> float | None:
        """Return how long a batch of `rows` rows takes, 99 times of 100; None without data."""
        at = _class(rows)
        with self._lock:
            takes = self._mean + DEVIATIONS * np.sqrt(self._variance)
        known = np.flatnonzero(~np.isnan(takes))
        if not len(known):
            return None
        below = known[known <= at]
        if not len(below):
            return float(takes[known[0]])
        nearest = below[-1]
        return float(takes[nearest] * 2.0 ** (at - nearest))

    def close_at(self, arrived: float, rows: int) -> float:
        """Return when a batch with that many rows must be closed, on the clock of `arrived`, the
        arrival of its oldest row."""
        takes = self.seconds(rows)
        return arrived if takes is None else arrived + self.objective - takes


def _class(rows: int) -> int:
    return min(SIZES - 1, (max(1, rows) - 1).bit_length())


__all__ = ["Deadline"]
