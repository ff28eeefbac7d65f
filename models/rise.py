"""Whether a model's error has risen: the sign that what it learned no longer holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        and how many they are.
        """
        counts = self.count + np.arange(1, len(errors) + 1)
        totals = self.total + np.cumsum(errors)
        squares = self.squares + np.cumsum(errors * errors)
        means = totals / counts
        deviations = np.sqrt(np.maximum(squares / counts - means * means, 0.0))
        units = np.where(deviations > 0, deviations, 1.0)
        beyond = np.where(counts > WARMUP, (errors - means) / units - SLACK, 0.0)
        rising = self.rising + np.cumsum(beyond)
        lowest = np.minimum(self.lowest, np.minimum.accumulate(rising))
        found = np.flatnonzero(rising - lowest > THRESHOLD)
        last = int(found[0]) if len(found) else len(errors) - 1
        after = Rise(
            count=int(counts[last]),
            total=float(totals[last]),
            squares=float(squares[last]),
            rising=float(rising[last]),
            lowest=float(lowest[last]),
        )
        return after, last + 1 if len(found) else None

    def snapshot(self) -> dict[str, Any]:
        """The fields as a plain value."""
        return dataclasses.asdict(self)

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> Rise:
        """From what `snapshot` gave."""
        return cls(**value)


__all__ = ["Rise"]
