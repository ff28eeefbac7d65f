"""The rows that a sink gets: those for which [sink] where holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from engine.columnar.row_expressions import Condition
from engine.types import RESERVED, Batch, Mark, Rejects, Schema

SINK = "sink"
"""The stage of what is counted and rejected here."""
NOT_WRITTEN = "not_written"
"""What rows are counted as for which the condition does not hold."""
WHERE = "[sink] where"


class Chosen(NamedTuple):
    """What becomes of rows.

    Attributes:
        rows, places: those to write, and where they were read, m rows each.
        left: how many are not written, as the condition does not hold or is null.
        rejects: those on which it fails; None for none.
    """

    rows: pl.DataFrame
    places: pl.DataFrame
    left: int
    rejects: Rejects | None


class WrittenRows:
    """Chooses rows by a SQL condition on the columns that are written.

    Args:
        sql: the condition.
        schema: the columns.

    Raises: UserError for what is no condition on a row's own values of them.
    """

    def __init__(self, sql: str, schema: Schema) -> None:
        self._condition = Condition(sql, schema, where=f"{WHERE}, on the columns that are written,")

    def choose(self, rows: pl.DataFrame, places: pl.DataFrame) -> Chosen:
        """Return what to write of rows that were read at these places."""
        if rows.is_empty():  # without the columns of a model that had nothing to score
            return Chosen(rows, places, 0, None)
        keep, failures = self._condition.holds(rows)
        left = len(keep) - int(keep.sum()) - len(failures)
        rejects = _rejected(rows, places, failures) if failures else None
        if left or failures:
            rows, places = rows.filter(keep), places.filter(keep)
        return Chosen(rows, places, left, rejects)


def _rejected(rows: pl.DataFrame, places: pl.DataFrame, failures: Mapping[int, str]) -> Rejects:
    """Return the rows on which the condition fails."""
    own = range(rows.height)
    detail = pl.Series([f"{WHERE}: {failures.get(row, '')}" for row in own])
    good = pl.Series([row not in failures for row in own])
    whole = pl.concat([places, rows.drop(RESERVED, strict=False)], how="horizontal")
    batch = Batch(frame=whole, mark=Mark(), arrived=0.0)
    (rejects,) = batch.reject(good, stage=SINK, reason="invalid", detail=detail).rejects
    return rejects


__all__ = ["NOT_WRITTEN", "SINK", "WrittenRows"]
