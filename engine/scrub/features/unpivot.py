"""Turns columns into rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from engine import types
from engine.scrub.columns import expand_columns
from engine.types import (
    PART,
    RESERVED,
    Batch,
    Name,
    Names,
    Schema,
    Stage,
    Transform,
    UserError,
    require,
    scales_of_rows,
    type_name,
)


class Unpivot(Stage):
    """Makes of every row one row per column: its name and its value, beside the kept columns.

    Rows come source row by source row and in it in the order of `columns`, so that time stays time;
    each keeps the partition and position of the row it came from. Numbers of different types meet
    in the type that holds them all.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "unpivot"``

        Attributes:
            keep: columns repeated on every new row; names or globs.
            columns: columns that become rows; names or globs; by default all that are not kept.
            variable: name of the new column with their names (String).
            value: name of the new column with their values.
        """

        keep: Names = ()
        columns: Names = ("*",)
        variable: Name = "variable"
        value: Name = "value"

    def __init__(self, name: str, settings: Unpivot.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Unpivot.Settings = settings
        self._keep: tuple[str, ...] = ()
        self._columns: tuple[str, ...] = ()

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        self._keep = (
            expand_columns(settings.keep, schema, where=self.where) if settings.keep else ()
        )
        rest = {c: dtype for c, dtype in schema.items() if c not in (*self._keep, PART)}
        if not rest:
            raise UserError(f"{self.where} keeps all columns, so none is left to unpivot.")
        require(schema, [c for c in settings.columns if c in self._keep], where=self.where)
        self._columns = expand_columns(settings.columns, rest, where=self.where)
        kept = {column: schema[column] for column in self._keep}
        for new in (settings.variable, settings.value):
            if new in kept or new in RESERVED or settings.variable == settings.value:
                raise UserError(
                    f"{self.where} names a new column '{new}', which is there already: set another "
                    "name in 'variable' or 'value'."
                )
        if PART in schema:
            kept[PART] = schema[PART]
        return {**kept, settings.variable: pl.String(), settings.value: self._kind(rest)}

    def _kind(self, schema: Schema) -> pl.DataType:
        kinds = {schema[column] for column in self._columns}
        odd = [c for c in self._columns if not schema[c].is_numeric()]
        if len(kinds) > 1 and odd:
            other = next(c for c in self._columns if schema[c] != schema[odd[0]])
            raise UserError(
                f"{self.where} expects columns of one type, got {type_name(schema[odd[0]])} in "
                f"column '{odd[0]}' and {type_name(schema[other])} in '{other}': keep one, or "
                "unpivot them apart."
            )
        empty = pl.DataFrame(schema={column: schema[column] for column in self._columns})
        return empty.select(pl.concat_list(self._columns).explode()).to_series().dtype

    def apply(self, batch: Batch) -> Batch:
        n, m = len(batch), len(self._columns)
        settings = self.settings
        rows = np.repeat(np.arange(n), m)
        names = pl.Series(settings.variable, self._columns, pl.String)
        values = batch.frame.select(pl.concat_list(self._columns).alias(settings.value))
        kept = dict.fromkeys((*RESERVED, *self._keep))
        if PART in batch.frame.columns:
            kept[PART] = None
        frame = batch.frame.select(*kept)[rows].with_columns(
            names.gather(np.tile(np.arange(m), n)), values.to_series().explode()
        )
        batch = replace(batch, scales=scales_of_rows(batch.scales, rows))
        return batch.with_frame(frame, added=n * m - n)

    def transforms(self) -> list[Transform] | None:
        """Return None: it changes the number of rows."""
        return None


__all__ = ["Unpivot"]
