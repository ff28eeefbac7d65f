"""Detects a rise of the model's error (Page-Hinkley style)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

BLOCK = 8
"""Errors averaged as one block: neighbours are often wrong together."""
WARMUP = 40
"""The blocks before a rise is looked for."""
DRIFT_SLACK = 0.25
"""Deviations above the mean that a block may have without counting."""
MAX_DEVIATIONS = 8.0
"""The most deviations above the mean that count for a block."""
MEMORY_BLOCKS = 8_192
"""The blocks after which old errors have faded."""
THRESHOLD = 40.0
"""Deviations that the cumulative sum may rise above its minimum."""


class ErrorDrift(NamedTuple):
    """The one-sided Page-Hinkley test: while a model learns its error falls, which is not drift.
    A value: updating makes a new one.

    Page, "Continuous Inspection Schemes" (1954), on the means of blocks of errors.

    Attributes:
        threshold: how much the sum of what lies beyond may rise.
        risen: whether it has risen further.
        blocks, total, squares: of the blocks so far, the sum of their means and of its squares.
        rising, lowest: the sum of what lay above the mean, and its lowest value.
        open, held: errors of the block that is not full, and their sum.
        usual: mean error, of the last 65,536 rows or so; the watches before included.
        age: blocks that it is of.
    """

    threshold: float = THRESHOLD
    risen: bool = False
    blocks: int = 0
    total: float = 0.0
    squares: float = 0.0
    rising: float = 0.0
    lowest: float = 0.0
    open: int = 0
    held: float = 0.0
    usual: float = 0.0
    age: int = 0

    def reset(self, threshold: float = THRESHOLD) -> ErrorDrift:
        """Return a detector that has seen no rise, but keeps the usual error."""
        return ErrorDrift(threshold=threshold, usual=self.usual, age=self.age)

    def update(self, errors: NDArray[np.float64]) -> ErrorDrift:
        """Return the detector after these errors, shape (n,). A non-finite error counts as 0."""
        return ErrorDrift(*_seen(errors, *self))

    def snapshot(self) -> dict[str, Any]:
        """Return the fields as a plain value."""
        return self._asdict()

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> ErrorDrift:
        """Return the detector from a `snapshot`."""
        return cls(**value)


@numba.njit(nogil=True, cache=True)
def _seen(  # type: ignore[no-untyped-def]
    errors, threshold, risen, blocks, total, squares, rising, lowest, open_, held, usual, age
):
    """Return the fields of `ErrorDrift` after the errors, one by one, so that batch boundaries
    do not matter."""
    for i in range(len(errors)):
        held += errors[i] if errors[i] < math.inf else 0.0  # NaN is not
        open_ += 1
        if open_ < BLOCK:
            continue
        mean_of_block = held / BLOCK
        open_, held = 0, 0.0
        age = min(age + 1, MEMORY_BLOCKS)
        usual += (mean_of_block - usual) / age
        blocks += 1
        total += mean_of_block
        squares += mean_of_block * mean_of_block
        if blocks > WARMUP:
            mean = total / blocks
            deviation = math.sqrt(max(squares / blocks - mean * mean, 0.0))
            beyond = (mean_of_block - mean) / (deviation if deviation > 0 else 1.0)
            rising += min(beyond, MAX_DEVIATIONS) - DRIFT_SLACK
        lowest = min(lowest, rising)
        risen = risen or rising - lowest > threshold
    return threshold, risen, blocks, total, squares, rising, lowest, open_, held, usual, age


@functools.cache
def rehearse() -> None:
    """Compile the loop now, so that the first row does not wait."""
    ErrorDrift().update(np.zeros(1))


__all__ = ["THRESHOLD", "ErrorDrift", "rehearse"]
