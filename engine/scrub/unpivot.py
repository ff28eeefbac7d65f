"""``unpivot``: one row with many readings becomes many rows with one."""

from __future__ import annotations

import polars as pl

from engine.scrub.base import Base, spread
from engine.types import PARTITION, POSITION, Batch, Schema, Settings, UserError


class Unpivot(Base):
    """Turns columns into rows: each row becomes one row a column, with the column's name and its
    value.

    Rows stay in order: all of the first source row, in the columns' order, then all of the second.
    They keep the
    partition and position of the record they come from.
    """

    class Settings(Settings):
        """
        Attributes:
            keep: columns repeated on every row; globs.
            columns: columns to turn, of one type; globs; all that are not kept unless given.
            variable, value: names of the two new columns.
        """

        keep: tuple[str, ...] = ()
        columns: tuple[str, ...] = ("*",)
        variable: str = "variable"
        value: str = "value"

    settings: Unpivot.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for columns that are not there, or not of one type."""
        settings = self.settings
        self._keep = spread(settings.keep, schema, where=f"{self.where} keep")
        rest = {c: kind for c, kind in schema.items() if c not in self._keep}
        self._turned = spread(settings.columns, rest, where=f"{self.where} columns")
        kinds = {rest[c] for c in self._turned}
        if len(kinds) != 1:
            odd = {str(kind): next(c for c in self._turned if rest[c] == kind) for kind in kinds}
            raise UserError(
                f"{self.where} expects columns of one type, got "
                f"{', '.join(f'{c} {kind}' for kind, c in sorted(odd.items()))}: keep or cast "
                "the odd ones."
            )
        self._names = pl.Series(self._turned)
        kept = {c: schema[c] for c in self._keep}
        return {**kept, settings.variable: pl.String(), settings.value: kinds.pop()}

    def apply(self, batch: Batch) -> Batch:
        """Turn."""
        n, d = len(batch), len(self._turned)
        kept = [PARTITION, POSITION, *self._keep]
        frame = batch.frame.select(
            *kept, pl.concat_list(self._turned).alias(self.settings.value)
        ).explode(self.settings.value, empty_as_null=False)
        names = self._names.gather(pl.int_range(n * d, eager=True) % d)
        frame = frame.select(*kept, names.alias(self.settings.variable), self.settings.value)
        return batch.with_frame(frame, grown=n * (d - 1))


__all__ = ["Unpivot"]
