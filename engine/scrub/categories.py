"""``categories``: text to codes that an embedding can look up."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from engine.scrub.base import Base, ColumnSettings, spread
from engine.types import Batch, Codes, Schema, Snapshot, Transform


class Categories(Base):
    """Replaces values by Int64 codes; 0 is unknown, and what null becomes.

    ``vocabulary``: values get codes 1, 2, ... in order of first appearance, up to `size`; a value
    is unknown in the
    batch that brings it, and for good once the vocabulary is full. ``hash``: every value falls into
    one of `size`
    buckets by CRC-32, so there is nothing to learn and values may collide; such codes cannot be
    written into a model
    file. Numbers and booleans are taken by their text. Counts ``unknown``.
    """

    class Settings(ColumnSettings):
        """
        Attributes:
            method: vocabulary or hash.
            size: codes besides 0.
        """

        method: Literal["vocabulary", "hash"] = "vocabulary"
        size: int = Field(1_000, ge=1)

    settings: Categories.Settings

    def bind(self, schema: Schema) -> Schema:
        """Raises: UserError for a column that is not there."""
        self._columns = spread(self.settings.columns, schema, where=self.where)
        self._values: dict[str, tuple[str, ...]] = dict.fromkeys(self._columns, ())
        return {**schema, **dict.fromkeys(self._columns, pl.Int64())}

    def sizes(self) -> dict[str, int]:
        """Column -> number of codes, 0 included."""
        return dict.fromkeys(self._columns, self.settings.size + 1)

    def apply(self, batch: Batch) -> Batch:
        """Encode, then learn the values that were unknown."""
        text = batch.frame.select(pl.col(self._columns).cast(pl.String))
        codes = [self._codes(text.get_column(c)) for c in self._columns]
        unknown = sum(int((code == 0).sum()) for code in codes)
        if unknown and self.settings.method == "vocabulary":
            self._values = {
                c: self._learn(c, text.get_column(c).filter(code == 0))
                for c, code in zip(self._columns, codes, strict=True)
            }
        return batch.with_frame(batch.frame.with_columns(codes)).counted(self.name, unknown=unknown)

    def transforms(self) -> Sequence[Transform] | None:
        """Code tables; None for hashes."""
        if self.settings.method == "hash":
            return None
        return [Codes(column=c, values=self._values[c]) for c in self._columns]

    def snapshot(self) -> Snapshot:
        """The vocabularies; None for hashes."""
        return None if self.settings.method == "hash" else self._values

    def restore(self, value: Snapshot) -> None:
        """Back to them."""
        if value is not None:
            self._values = value

    def _codes(self, column: pl.Series) -> pl.Series:
        if self.settings.method == "hash":
            # Per different value, not per row: CRC-32 is the same on every machine and in every
            # version.
            values = column.unique().drop_nulls().to_list()
            codes = [zlib.crc32(value.encode()) % self.settings.size + 1 for value in values]
        else:
            values = list(self._values[column.name])
            codes = list(range(1, len(values) + 1))
        if not values:
            return pl.repeat(0, len(column), dtype=pl.Int64, eager=True).alias(column.name)
        return column.replace_strict(values, codes, default=0, return_dtype=pl.Int64).fill_null(0)

    def _learn(self, column: str, unknown: pl.Series) -> tuple[str, ...]:
        known = self._values[column]
        room = self.settings.size - len(known)
        new = unknown.drop_nulls().unique(maintain_order=True).head(room).to_list()
        return (*known, *new)


__all__ = ["Categories"]
