"""``duplicates``: the first row of a key stays, later ones leave."""

from __future__ import annotations

from typing import Any

import polars as pl
from pydantic import Field

from engine.scrub.base import Base, spread
from engine.types import Batch, Schema, Settings, Snapshot, Transform


class Duplicates(Base):
    """Rejects rows (reason ``duplicate``) whose key columns equal those of an earlier row, within
    the newest `window`
    rows that were kept. Keys are compared themselves, not by a hash, so nothing is lost by
    collision; null equals
    null. Counts ``duplicates``.
    """

    class Settings(Settings):
        """
        Attributes:
            by: key columns.
            window: rows whose keys are remembered.
        """

        by: tuple[str, ...] = Field(min_length=1)
        window: int = Field(50_000, ge=1)

    settings: Duplicates.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a key column that is not there."""
        self._by = spread(self.settings.by, schema, where=f"{self.where} by")
        self._state = pl.DataFrame(schema={c: schema[c] for c in self._by})
        return schema

    def apply(self, batch: Batch) -> Batch:
        """Reject repeated keys, remember the new ones."""
        keys = batch.frame.select(self._by)
        seen = self._seen(keys)
        first = keys.select(pl.struct(self._by).is_first_distinct()).to_series()
        keep = first & ~seen
        fresh = pl.concat([self._state, keys.filter(keep)])
        self._state = fresh.tail(self.settings.window)
        done = batch.reject(keep, stage=self.name, reason="duplicate")
        return done.counted(self.name, duplicates=len(batch) - len(done))

    def transforms(self) -> tuple[Transform, ...]:
        """It changes no values."""
        return ()

    def snapshot(self) -> Snapshot:
        """The keys remembered."""
        return self._state

    def restore(self, value: Snapshot) -> None:
        """Back to them."""
        self._state = value

    _state: Any

    def _seen(self, keys: pl.DataFrame) -> pl.Series:
        if not self._state.height:
            return pl.repeat(False, keys.height, eager=True)
        rows = keys.with_row_index("_row")
        old = rows.join(self._state, on=self._by, how="semi", nulls_equal=True)
        return rows["_row"].is_in(old["_row"].implode())


__all__ = ["Duplicates"]
