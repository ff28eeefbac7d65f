"""``derive``: new columns by SQL."""

from __future__ import annotations

import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from engine.scrub.base import Base
from engine.types import RESERVED, Batch, Schema, Settings, UserError, nearest


class Derive(Base):
    """Adds or replaces columns, each by an SQL expression over the columns before it, in the order
    they are listed.

    An expression sees one row at a time: the result must have as many rows as the batch. Useful
    words: arithmetic,
    CASE WHEN, CAST, COALESCE, ``||``, SPLIT_PART, LOWER, STRPTIME, EXTRACT(HOUR | DOW | DOY ...
    FROM time), SQRT,
    LN, LOG1P, SIN, COS, ABS, GREATEST, LEAST.
    """

    class Settings(Settings):
        """
        Attributes:
            columns: name -> SQL expression.
        """

        columns: dict[str, str] = Field(min_length=1)

    settings: Derive.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for SQL that is none, or names a column that is not there."""
        self._exprs = []
        frame = pl.DataFrame(schema=schema)
        for name, sql in self.settings.columns.items():
            if name in RESERVED:
                raise UserError(f"{self.where} names column '{name}', which headrace itself adds.")
            expr = self._expr(name, sql, schema)
            try:
                frame = frame.with_columns(expr)
            except PolarsError as error:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f'{self.where} {name} = "{sql}" cannot be done: {reason}.'
                ) from None
            self._exprs.append(expr)
            schema = dict(frame.schema)
        return schema

    def apply(self, batch: Batch) -> Batch:
        """Add the columns."""
        frame = batch.frame
        for expr in self._exprs:
            frame = frame.with_columns(expr)
        return batch.with_frame(frame)

    def _expr(self, name: str, sql: str, schema: Schema) -> pl.Expr:
        try:
            expr = pl.sql_expr(sql)
        except PolarsError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f'{self.where} {name} = "{sql}" is no SQL expression: {reason}.'
            ) from None
        for column in expr.meta.root_names():
            if column not in schema:
                raise UserError(
                    f"{self.where} {name} = \"{sql}\" needs column '{column}', which is not there."
                    f"{nearest(column, schema)}"
                )
        return expr.alias(name)


__all__ = ["Derive"]
