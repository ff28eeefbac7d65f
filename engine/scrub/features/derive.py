"""Adds columns computed by SQL expressions."""

from __future__ import annotations

import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from engine import types
from engine.columnar.row_expressions import RowExpressions
from engine.types import RESERVED, Batch, Schema, Stage, Transform, UserError


class Derive(Stage):
    """Adds or replaces columns by polars' SQL expressions, in order: later ones may use earlier
    ones.

    Every row for itself: an expression that looks at other rows (sum, avg, over ...) is refused, as
    its results would depend on how the stream is cut, and on the future. A row on which an
    expression fails (a text that is no date, a product beyond 64 bits) is rejected alone, with
    reason ``invalid``.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "derive"``

        Attributes:
            columns: name = "SQL expression", in order.
        """

        columns: dict[str, str] = Field(min_length=1)

    def __init__(self, name: str, settings: Derive.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Derive.Settings = settings
        self._derived: RowExpressions | None = None

    def bind(self, schema: Schema) -> Schema:
        for column in self.settings.columns:
            if column in RESERVED:
                raise UserError(
                    f"{self.where} derives column '{column}', which headrace itself adds."
                )
        self._derived = RowExpressions(
            self.settings.columns, schema, where=lambda column: f"{self.where} column '{column}'"
        )
        return self._derived.schema

    def apply(self, batch: Batch) -> Batch:
        assert self._derived is not None
        try:
            return batch.with_frame(self._derived.of(batch.frame))
        except PolarsError:
            failures = self._derived.failures(batch.frame)
        rows = pl.int_range(pl.len())
        detail = pl.Series([failures.get(i) for i in range(len(batch))], dtype=pl.String)
        batch = batch.reject(
            ~rows.is_in(list(failures)), stage=self.name, reason="invalid", detail=detail
        )
        return batch.with_frame(self._derived.of(batch.frame))

    def transforms(self) -> list[Transform] | None:
        """Return None: SQL is not written into a model file."""
        return None


__all__ = ["Derive"]
