"""Records that are columns already (Parquet, Arrow, memory): only their types are checked."""

from __future__ import annotations

import polars as pl

from connectors.formats.casts import conform
from connectors.formats.rows import placed
from engine.types import HeadraceError, Records, Rejects, Schema, nearest


class Columns:
    """See `engine.types.Format`. A value that does not fit the schema's type without loss rejects
    its row, ``wrong_type`` or ``out_of_range``; text is read as CSV fields are."""

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Raises: HeadraceError when a file lacks a column that the schema has."""
        frame = records.values
        assert isinstance(frame, pl.DataFrame)
        present(schema, frame.columns, records.partition)
        frame = frame[list(schema)]
        if frame.dtypes == list(schema.values()):
            return placed(frame, records), []
        return conform(frame, records, schema)


def present(schema: Schema, columns: list[str], partition: str) -> None:
    """Raises: HeadraceError when the partition lacks a column of the schema."""
    for column in schema:
        if column not in columns:
            raise HeadraceError(
                f"{partition} has no column '{column}', which the schema names."
                f"{nearest(column, columns)}"
            )


__all__ = ["Columns", "present"]
