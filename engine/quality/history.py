"""Errors over time: sums per step, for the model and its baselines."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from engine.quality.scored_rows import ScoredRows
from engine.types.arrays import Floats


class ErrorHistory:
    """Errors per step of time, or per so many rows.

    Args:
        names: whose errors these are, the model first.
        time: the column of times; None counts rows.
        every: the length of a step: a duration with `time`, else a number of rows.

    Attributes:
        sums: columns ``time``, and ``sum NAME`` and ``n NAME`` for each name; or empty. Replaced,
            never changed.
    """

    def __init__(self, names: Sequence[str], time: str | None, every: str | int) -> None:
        self._names = names
        self._time = time
        self._every = every
        self.sums = pl.DataFrame()

    def add(self, rows: ScoredRows, errors: Floats, before: int) -> None:
        """Add rows.

        Args:
            errors: NaN if there is none, shape (n, names).
            before: how many rows came before them.
        """
        sums = [f"sum {name}" for name in self._names]
        counts = [f"n {name}" for name in self._names]
        added = (
            pl.DataFrame(errors, schema=sums, orient="row", nan_to_null=True)
            .with_columns(self._steps(rows, before).alias("time"))
            .group_by("time", maintain_order=True)
            .agg(
                *(pl.col(c).sum() for c in sums),
                *(
                    pl.col(c).count().cast(pl.Int64).alias(n)
                    for c, n in zip(sums, counts, strict=True)
                ),
            )
        )
        if self.sums.height:
            both = pl.concat([self.sums, added])
            added = both.group_by("time", maintain_order=True).agg(pl.all().sum())
        self.sums = added

    def _steps(self, rows: ScoredRows, before: int) -> pl.Series:
        if self._time is None:
            assert isinstance(self._every, int)
            numbers = pl.int_range(before, before + len(rows), eager=True)
            return numbers // self._every * self._every
        return rows.frame.get_column(self._time).dt.truncate(str(self._every))

    def means(self) -> pl.DataFrame:
        """Return the mean error per step, in the order of time: columns ``time``, ``rows`` (those
        of the first name), and one per name."""
        if not self.sums.height:
            return self.sums
        means = [
            (pl.col(f"sum {name}") / pl.col(f"n {name}")).fill_nan(None).alias(name)
            for name in self._names
        ]
        rows = pl.col(f"n {self._names[0]}").alias("rows")
        return self.sums.sort("time").select("time", rows, *means)


__all__ = ["ErrorHistory"]
