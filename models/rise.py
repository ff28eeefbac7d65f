"""Whether a model's error has risen: the sign that what it learned no longer holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

WARMUP = 300
"""Errors that are seen before a rise is looked for."""
SLACK = 0.25
"""Deviations above the mean that an error may lie without counting."""
THRESHOLD = 50.0
"""Deviations that the sum of what lies beyond may rise above its lowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rise:
    """Page and Hinkley's test on the side where the error grows: while a model learns its error
    falls, and that is no change. A value: looking makes a new one.

    Page, "Continuous Inspection Schemes" (1954); unit and limits as of the 'drift' stage.

    Attributes:
        count, total, squares: of the errors so far, their sum and the sum of their squares.
        rising, lowest: the sum of what lay above the mean, and its lowest value.
    """

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    rising: float = 0.0
    lowest: float = 0.0

    def seen(self, errors: NDArray[np.float64]) -> tuple[Rise, int | None]:
        """After these errors, shape (n,); or after those up to the first at which a rise is found,
        and how many they are. One that is not finite counts as 0.
        """
        *after, rows = _seen(errors, *dataclasses.astuple(self))
        count, total, squares, rising, lowest = after
        rise = Rise(count=count, total=total, squares=squares, rising=rising, lowest=lowest)
        return rise, rows or None

    def snapshot(self) -> dict[str, Any]:
        """The fields as a plain value."""
        return dataclasses.asdict(self)

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Rise:
        """From what `snapshot` gave."""
        return cls(**value)


@numba.njit(nogil=True, cache=True)
def _seen(errors, count, total, squares, rising, lowest):  # type: ignore[no-untyped-def]
    """The fields of `Rise` after the errors, and after how many a rise was found (0: none was).
    In order, so that it does not matter how they are cut."""
    for i in range(len(errors)):
        error = errors[i] if errors[i] < math.inf else 0.0  # NaN is not
        count += 1
        total += error
        squares += error * error
        if count > WARMUP:
            mean = total / count
            deviation = math.sqrt(max(squares / count - mean * mean, 0.0))
            rising += (error - mean) / (deviation if deviation > 0 else 1.0) - SLACK
        lowest = min(lowest, rising)
        if rising - lowest > THRESHOLD:
            return count, total, squares, rising, lowest, i + 1
    return count, total, squares, rising, lowest, 0


__all__ = ["Rise"]
