"""A column of times, as ticks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.types import NANOSECONDS, UserError, nanoseconds, type_name
from engine.types.arrays import Ints

PER_TICK = {"ns": 1, "us": 1_000, "ms": 1_000_000}
NEVER = -(1 << 62)
"""A time before all times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTime:
    """A datetime, date or integer column.

    Attributes:
        column: its name.
        dtype: its type.
        where: how error sentences name its stage.
    """

    column: str
    dtype: pl.DataType
    where: str

    @property
    def nanoseconds(self) -> int | None:
        """The length of a tick; None for integers, of which it is unknown.

        Raises: UserError for a column of another type.
        """
        if isinstance(self.dtype, pl.Datetime):
            return PER_TICK[self.dtype.time_unit]
        if self.dtype == pl.Date:
            return NANOSECONDS["d"]
        if self.dtype.is_integer():
            return None
        raise UserError(
            f"{self.where} time expects a datetime, date or integer column, got "
            f"'{self.column}' of type {type_name(self.dtype)}: make a time of it with a "
            "'derive' stage."
        )

    def ticks(self, key: str, value: str | int) -> int:
        """Return a duration, which the setting `key` has, in ticks."""
        tick = self.nanoseconds
        if tick is not None:
            return self._whole(key, value, tick)
        if isinstance(value, int) and value >= 0:
            return value
        raise UserError(
            f"{self.where} expects whole numbers for '{key}', as column '{self.column}' holds "
            f"integers, got {value!r}."
        )

    def _whole(self, key: str, value: str | int, tick: int) -> int:
        length = 0 if value == 0 else nanoseconds(str(value))
        if length is None:
            raise UserError(
                f'{self.where} expects a duration like "1h", "15m" or "1d" for \'{key}\', got '
                f"{value!r}; months and years have no fixed length."
            )
        if length % tick:
            raise UserError(
                f"{self.where} '{key}' = {value!r} is finer than column '{self.column}': "
                "take a longer one."
            )
        return length // tick

    def read(self, frame: pl.DataFrame) -> Ints:
        """Return the times in ticks, shape (n,); NEVER for null and for what is too far away."""
        column = frame.get_column(self.column)
        if column.dtype.is_temporal():
            times: Ints = column.to_numpy().view(np.int64)  # null is the least number
        else:
            times = column.cast(pl.Int64, strict=False).fill_null(NEVER).to_numpy()
        if len(times) and times.min() > NEVER and times.max() < -NEVER:
            return times.copy()
        return np.where((times <= NEVER) | (times >= -NEVER), NEVER, times)


__all__ = ["NEVER", "EventTime"]
