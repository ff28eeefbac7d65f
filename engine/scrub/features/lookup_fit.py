"""How the columns of a table fit the stream it is looked up from: its keys, times and additions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER, EventTime
from engine.scrub.columns import expand_columns
from engine.scrub.features.lookup_table import key_column
from engine.types import Batch, Schema, UserError, require
from engine.types.arrays import Bools, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittedRows:
    """Rows of a table as the stream needs them.

    Attributes:
        keys: in the types of the stream, n rows.
        whole: which have a key and, where asked for, times; the others match nothing. Shape (n,).
        columns: that are added, under their new names, n rows.
        valid, known: when each is valid and known, in ticks of the stream's time, shape (n,); None
            without times.
    """

    keys: pl.DataFrame
    whole: Bools
    columns: pl.DataFrame
    valid: Ints | None
    known: Ints | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What the stream asks of a table.

    Attributes:
        keys: key column of the table -> its type in the stream.
        columns: those that are added, names or globs.
        prefix: put before their names.
        clock: the stream's time, with `as_of`.
        as_of, known: columns of the table with times.
    """

    keys: Mapping[str, pl.DataType]
    columns: tuple[str, ...]
    prefix: str
    clock: EventTime | None
    as_of: str | None
    known: str | None

    @property
    def remedy(self) -> str:
        """What gives the added columns other names; ends a sentence."""
        other = "'prefix'" if not self.prefix else "another 'prefix'"
        return f"set {other}, or name the columns to add in 'columns'"

    def rows(self, table: pl.DataFrame, where: str) -> FittedRows:
        """Return the rows of a table. Raises: UserError if it does not fit."""
        require(table.schema, self.keys, where=where)
        valid, known = self._times(table, where)
        keys = table.select(
            key_column(table.get_column(column), dtype, where).alias(column)
            for column, dtype in self.keys.items()
        )
        whole = ~keys.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
        if valid is not None and known is not None:
            whole &= (valid != NEVER) & (known != NEVER)
        columns = table.select(self._chosen(table.schema, where))
        columns = columns.rename({c: self.prefix + c for c in columns.columns})
        return FittedRows(keys=keys, whole=whole, columns=columns, valid=valid, known=known)

    def added(self, schema: Schema, where: str) -> Schema:
        """Return the columns that a table of this schema adds. Raises: UserError as `rows`."""
        return dict(self.rows(pl.DataFrame(schema=schema), where).columns.schema)

    def _chosen(self, schema: pl.Schema, where: str) -> list[str]:
        hidden = {*self.keys, self.as_of, self.known}
        given = self.columns == ("*",)
        chosen = expand_columns(self.columns, dict(schema), where=where)
        chosen = tuple(c for c in chosen if not (given and c in hidden))
        if not chosen:
            raise UserError(f"{where} has no column beside its keys: nothing can be added.")
        return list(chosen)

    def _times(self, table: pl.DataFrame, where: str) -> tuple[Ints | None, Ints | None]:
        """Return when each row is valid and when it is known, in ticks of the stream's time."""
        if self.as_of is None or self.clock is None:
            return None, None
        require(table.schema, [self.as_of], where=where)
        valid = _ticks_of(table.get_column(self.as_of), self.clock, where)
        if self.known is None:
            return valid, valid
        require(table.schema, [self.known], where=where)
        return valid, _ticks_of(table.get_column(self.known), self.clock, where)


def _ticks_of(column: pl.Series, clock: EventTime, where: str) -> Ints:
    """Return times of the table in ticks of the stream's. A time without a zone is in UTC, as a
    source reads it."""
    wanted, got = clock.dtype, column.dtype
    if not (got.is_integer() if wanted.is_integer() else got in (pl.Date, pl.Datetime)):
        raise UserError(
            f"{where} expects times like those of column '{clock.column}' ({wanted}) in column "
            f"'{column.name}', got {got}."
        )
    known = column
    if isinstance(got, pl.Datetime) and got.time_zone is not None:
        known = known.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if isinstance(wanted, pl.Datetime):
        known = known.cast(pl.Datetime(wanted.time_unit), strict=False)
    elif wanted == pl.Date:
        known = known.cast(wanted, strict=False)
    return clock.read(known.rename(clock.column).to_frame())


def null_keys(keys: pl.DataFrame) -> Bools:
    """Return which rows have a null among their keys, shape (n,)."""
    if not any(column.null_count() for column in keys.get_columns()):
        return np.zeros(keys.height, np.bool_)
    return keys.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()


def complete_rows(
    batch: Batch, by: Iterable[str], time: str | None, times: Ints | None, *, stage: str
) -> tuple[Batch, Bools]:
    """Reject the rows without a key (``no_key``) or a time (``no_time``). Return the others, and
    which of the n rows they are, shape (n,).

    Args:
        by: the key columns.
        time: the column of times; None without.
        times: in ticks, shape (n,).
    """
    frame, kept = batch.frame, np.ones(len(batch), np.bool_)
    wanted = [
        ("no_key", frame.get_column(c).is_not_null().to_numpy(), f"Expected a key in '{c}'")
        for c in by
    ]
    if time is not None and times is not None:
        wanted.append(("no_time", times > NEVER, f"Expected an event time in '{time}'"))
    for reason, there, expected in wanted:
        batch = batch.reject(
            there[kept], stage=stage, reason=reason, detail=f"{expected}, got null."
        )
        kept &= there
    return batch, kept


__all__ = ["Fit", "FittedRows", "complete_rows", "null_keys"]
