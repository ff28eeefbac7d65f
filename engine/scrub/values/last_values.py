"""The last value of each column by key, for stage `missing`."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from engine.types import Schema


class LastValues:
    """The last values of some columns, one for each key, or one for all rows.

    Args:
        columns: that are filled.
        by: the key columns.
        keys: how many keys are remembered, those seen last.
        schema: of the batches.

    Attributes:
        frame: the remembered keys and values: the state.
    """

    def __init__(
        self, columns: Sequence[str], by: Sequence[str], *, keys: int, schema: Schema
    ) -> None:
        self.frame = pl.DataFrame(schema={name: schema[name] for name in (*by, *columns)})
        self._by = list(by)
        self._columns = list(columns)
        self._floats = [column for column in columns if schema[column].is_float()]
        self._most = keys if by else 1

    def fill(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the columns with gaps (null, NaN) filled from earlier rows, and remember the
        last values."""
        rows = frame.select(*self._by, *self._columns)
        rows = self._append(rows.with_columns(pl.col(c).fill_nan(None) for c in self._floats))
        return rows.tail(frame.height).select(self._columns)

    def merge(self, frame: pl.DataFrame) -> None:
        """Add what another instance remembers; of two last values, its value stays."""
        self._append(frame)

    def _append(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the remembered rows and these, filled forward; remember the last ones."""
        by = self._by
        both = pl.concat((self.frame, rows))
        filled = pl.col(self._columns).forward_fill()
        both = both.with_columns(filled.over(by) if by else filled)
        if rows.height:
            last = both.unique(by, keep="last", maintain_order=True) if by else both
            self.frame = last.tail(self._most)
        return both


__all__ = ["LastValues"]
