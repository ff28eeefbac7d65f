"""Standardizes numbers within each key."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.hashing import hashes
from engine.columnar.kernels import buffers, scaled_one
from engine.columnar.statistics import KeyedMoments, inverse
from engine.scrub.base import FittedStage, ForgetSettings
from engine.scrub.columns import expand_columns, numbers
from engine.types import Batch, Names, Schema, Transform, UserError
from engine.types.arrays import Floats
from engine.types.changes import Neutral

HASH = "hash"


class StandardizeBy(FittedStage):
    """z-score among the rows of the same key: ``(x - mean) /
    deviation`` (population) over earlier batches; 0 if a key's column does not vary. The first 16
    rows are scaled by the rows before and themselves, up to the 128th whole blocks by those before.
    Null stays null, NaN stays NaN.

    For a key with fewer than `min_rows` numbers in a column, the statistics of all keys are used.
    At most `keys` keys are remembered, those seen last; how many left is counted as ``forgotten``,
    and a key that returns starts anew. Keys are compared by a 64-bit hash: two collide with
    probability keys**2 / 2**65. Null is a key like others.

    Memory: 16 bytes and 24 a column for each key, copied once a batch.
    """

    class Settings(ForgetSettings):
        """``[scrub.NAME]`` with ``kind = "standardize_by"``

        Attributes:
            columns: names or globs.
            by: the key columns; names or globs.
            keys: how many keys are remembered.
            min_rows [numbers]: numbers a key must have in a column before its own statistics count.
        """

        columns: Neutral[Names]
        by: Names = Field(min_length=1)
        keys: int = Field(10_000, ge=1)
        min_rows: int = Field(10, ge=1)

    def __init__(self, name: str, settings: StandardizeBy.Settings) -> None:
        super().__init__(name, settings)
        self.settings: StandardizeBy.Settings = settings
        self._by: tuple[str, ...] = ()

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        self._columns = expand_columns(settings.columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        self._by = expand_columns(settings.by, schema, where=f"{self.where} by")
        for column in self._columns:
            if column in self._by:
                raise UserError(f"{self.where} scales column '{column}', which is its own key.")
        self._begin(KeyedMoments.empty(len(self._columns), settings.keys))
        return {**schema, **dict.fromkeys(self._columns, pl.Float64())}

    def apply(self, batch: Batch) -> Batch:
        left = self._keyed.left
        done = self._passed(batch)
        return done.counted(self.name, forgotten=max(self._keyed.left - left, 0))

    def _changed(self, frame: pl.DataFrame) -> list[pl.Series]:
        learned = self._keyed
        at = learned.find(hashes(frame, self._by))
        shift, scale = self._numbers(learned)
        return [
            _scaled(frame.get_column(column), at, shift[:, j], scale[:, j])
            for j, column in enumerate(self._columns)
        ]

    @property
    def _keyed(self) -> KeyedMoments:
        assert isinstance(self._statistic, KeyedMoments)
        return self._statistic

    def _block(self, frame: pl.DataFrame) -> pl.DataFrame:
        keys = pl.Series(HASH, hashes(frame, self._by))
        return pl.DataFrame([keys, *frame[list(self._columns)].get_columns()])

    def _numbers(self, learned: KeyedMoments) -> tuple[Floats, Floats]:
        """Return shift and scale of each key, and at the end those for unknown keys, shape (k +
        1, columns)."""
        known = learned.count >= self.settings.min_rows
        shift = np.where(known, learned.mean, learned.total.mean)
        variance = learned.m2 / np.maximum(learned.count, 1)
        noise = learned.count * np.finfo(np.float64).eps * np.abs(learned.mean)
        deviation = np.where(variance > noise**2, np.sqrt(variance), 0.0)
        deviation = np.where(known, deviation, learned.total.deviation)
        shift = np.vstack((shift, learned.total.mean))
        deviation = np.vstack((deviation, learned.total.deviation))
        return shift, inverse(deviation)

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: a model file has no keys."""
        return None


def _scaled(column: pl.Series, at: NDArray[np.int64], shift: Floats, scale: Floats) -> pl.Series:
    values, _ = buffers(column)
    out = np.empty(len(values))
    _scale_rows(values, at, np.ascontiguousarray(shift), np.ascontiguousarray(scale), out)
    done = pl.Series(column.name, out)
    if not column.null_count():
        return done
    return done.to_frame().select(pl.when(column.is_not_null()).then(done)).to_series()


@numba.njit(nogil=True, cache=True)
def _scale_rows(x, at, shift, scale, out):  # type: ignore[no-untyped-def]
    """Scale rows, see `scaled_one`; index -1 is the last, as in numpy."""
    for i in range(x.shape[0]):
        out[i] = scaled_one(x[i], shift[at[i]], scale[at[i]])


__all__ = ["StandardizeBy"]
