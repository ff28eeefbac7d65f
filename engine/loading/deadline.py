"""Decides when to close a batch: soon enough for its oldest record, and not long before the model
is ready for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np

RECENT = 0.2
"""The weight of the newest batch in the averages of what the consumer takes for one, and what its
preparation takes."""
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


class Demand:
    """Foresees when the consumer is ready for the next batch. One that is closed long before only
    lies there, and what arrives meanwhile waits behind it; one that is closed just in time takes
    all of that along.

    The consumer calls it; any thread may read `due`.

    Attributes:
        due: `time.monotonic` seconds from which on a batch may be closed: as long before the
            consumer is ready as preparing one takes; 0 while the consumer waits.
        on_ask: called when the consumer asks for a batch.
    """

    def __init__(self) -> None:
        self.due = 0.0
        self.on_ask: Callable[[], object] = lambda: None
        self._taken: float | None = None
        self._work = self._preparing = 0.0

    def ask(self) -> None:
        """Note that the consumer is done with its batch and asks for one."""
        if self._taken is not None:
            self._work += RECENT * (time.monotonic() - self._taken - self._work)
            self._taken = None
        self.due = 0.0
        self.on_ask()

    def take(self, preparing: float) -> None:
        """Note that the consumer begins with a batch, whose preparation took so many seconds."""
        self._taken = time.monotonic()
        self._preparing += RECENT * (preparing - self._preparing)
        self.due = self._taken + max(0.0, self._work - self._preparing)


def _class(rows: int) -> int:
    return min(SIZES - 1, (max(1, rows) - 1).bit_length())


__all__ = ["Deadline", "Demand"]
