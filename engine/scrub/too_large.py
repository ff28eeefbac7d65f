"""Numbers that are too large for a stage to learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numba
import polars as pl

from engine.columnar.kernels import buffers
from engine.types.plural import counted

TOO_LARGE = "too_large"
"""The count of numbers that a stage could not learn from."""


def too_large(frame: pl.DataFrame, limit: float) -> dict[str, tuple[int, float]]:
    """Return, for each column that has them, how many finite numbers reach the limit in absolute
    value, and the first of them."""
    found = {}
    for column in frame.get_columns():
        if isinstance(column.dtype, pl.Float64) and reach(*buffers(column), limit):
            values = column.filter(column.is_finite() & (column.abs() >= limit))
            found[column.name] = len(values), float(values[0])
    return found


class TooLarge:
    """The numbers that one stage could not learn from.

    Attributes:
        columns: how many of each column, and the first of them.
    """

    def __init__(self) -> None:
        self.columns: dict[str, tuple[int, float]] = {}
        self._uncounted = 0

    def note(self, frame: pl.DataFrame, limit: float) -> None:
        """Add the numbers of the frame that reach the limit."""
        for name, (n, first) in too_large(frame, limit).items():
            before, earliest = self.columns.get(name, (0, first))
            self.columns[name] = before + n, earliest
            self._uncounted += n

    def counts(self) -> dict[str, int]:
        """Return what to count for the numbers since the last call; nothing for none."""
        n, self._uncounted = self._uncounted, 0
        return {TOO_LARGE: n} if n else {}

    def remarks(self, where: str, limit: float) -> Iterator[str]:
        """Yield a sentence for each column."""
        for name, (n, first) in self.columns.items():
            yield (
                f"{where} learned nothing from {counted(n, 'number')} of column '{name}' of size "
                f"{limit:g} or more (the first: {first:g}): its arithmetic cannot hold them. Divide"
                f" the column in a 'derive' stage before it, bound it in an 'outliers' stage, or "
                "leave it out."
            )


@numba.njit(nogil=True, cache=True)
def reach(x, mask, limit):  # type: ignore[no-untyped-def]
    """Return how many finite numbers are as large as the limit."""
    n = 0
    if mask.shape[0]:
        for i in range(x.shape[0]):
            n += (mask[i] != 0) & (limit <= abs(x[i])) & (abs(x[i]) < math.inf)
    else:
        for i in range(x.shape[0]):
            n += (limit <= abs(x[i])) & (abs(x[i]) < math.inf)
    return n


__all__ = ["TOO_LARGE", "TooLarge", "reach", "too_large"]
